//! Writes the driver's function table, the exported hooks, and the list that maps one to the other.

/// `hooked` functions have a handler, which is given the real table and the arguments; `counted` ones are passed on and
/// counted; `needed` ones are called by this library and not interposed.
macro_rules! interpose {
    (
        hooked { $( fn $hook:ident ( $( $ha:ident : $ht:ty ),* $(,)? ) => $handler:path; )* }
        counted { $( fn $count:ident ( $( $ca:ident : $ct:ty ),* $(,)? ); )* }
        needed { $( fn $need:ident ( $( $na:ident : $nt:ty ),* $(,)? ); )* }
    ) => {
        /// The driver's own functions. The library that they are in stays loaded, see `resolve`.
        #[allow(non_snake_case, reason = "C's names")]
        pub(crate) struct Driver {
            $( $hook: Option<unsafe extern "C" fn($( $ht ),*) -> Status>, )*
            $( $count: Option<unsafe extern "C" fn($( $ct ),*) -> Status>, )*
            $( pub(crate) $need: Option<unsafe extern "C" fn($( $nt ),*) -> Status>, )*
        }

        /// Every exported entry point.
        #[allow(non_camel_case_types, reason = "C's names")]
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub(crate) enum Entry { $( $hook, )* $( $count, )* }

        impl Entry {
            /// Every exported entry point, by name.
            pub(crate) const NAMES: &'static [&'static str] = &[ $( stringify!($hook), )* $( stringify!($count), )* ];
            /// Those that have a handler.
            pub(crate) const HOOKED: &'static [&'static str] = &[ $( stringify!($hook), )* ];
        }

        impl Driver {
            /// Fills the table.
            ///
            /// # Safety
            /// `find` returns null or the driver's function of that name, callable to the end of the process.
            pub(crate) unsafe fn resolve(find: &dyn Fn(&str) -> *mut c_void) -> Driver {
                Driver {
                    $( $hook: NonNull::new(find(stringify!($hook))).map(|found| {
                        // SAFETY: the function has the type of cuda.h, which the table repeats.
                        unsafe { std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn($( $ht ),*) -> Status>(found) }
                    }), )*
                    $( $count: NonNull::new(find(stringify!($count))).map(|found| {
                        // SAFETY: as above.
                        unsafe { std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn($( $ct ),*) -> Status>(found) }
                    }), )*
                    $( $need: NonNull::new(find(stringify!($need))).map(|found| {
                        // SAFETY: as above.
                        unsafe { std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn($( $nt ),*) -> Status>(found) }
                    }), )*
                }
            }

            /// For each exported entry point that the driver has: the driver's function, and the hook in its place.
            pub(crate) fn pairs(&self) -> Vec<(usize, usize)> {
                let mut pairs = Vec::with_capacity(Entry::NAMES.len());
                $( pairs.extend(self.$hook.map(|real| (real as usize, exports::$hook as *const () as usize))); )*
                $( pairs.extend(self.$count.map(|real| (real as usize, exports::$count as *const () as usize))); )*
                pairs
            }
        }

        #[allow(non_snake_case, clippy::too_many_arguments, dead_code, reason = "C's names and parameters")]
        impl Driver {
            $(
                /// # Safety
                /// As for the C function.
                pub(crate) unsafe fn $hook(&self, $( $ha: $ht ),*) -> Status {
                    // SAFETY: the caller keeps the C function's contract.
                    self.$hook.map_or(NOT_FOUND, |real| unsafe { real($( $ha ),*) })
                }
            )*
            $(
                /// # Safety
                /// As for the C function.
                pub(crate) unsafe fn $count(&self, $( $ca: $ct ),*) -> Status {
                    // SAFETY: the caller keeps the C function's contract.
                    self.$count.map_or(NOT_FOUND, |real| unsafe { real($( $ca ),*) })
                }
            )*
            $(
                /// # Safety
                /// As for the C function.
                pub(crate) unsafe fn $need(&self, $( $na: $nt ),*) -> Status {
                    // SAFETY: the caller keeps the C function's contract.
                    self.$need.map_or(NOT_FOUND, |real| unsafe { real($( $na ),*) })
                }
            )*
        }

        /// What the dynamic linker finds, and what pointers to the driver's functions are replaced with.
        #[allow(non_snake_case, clippy::too_many_arguments, reason = "C's names and parameters")]
        mod exports {
            use super::*;
            $(
                /// # Safety
                /// As for the C function.
                #[cfg_attr(not(test), unsafe(no_mangle))]
                pub(super) unsafe extern "C" fn $hook($( $ha: $ht ),*) -> Status {
                    // SAFETY: the program keeps the C function's contract.
                    let active = |shim| unsafe { $handler(shim, $( $ha ),*) };
                    // SAFETY: as above.
                    guard::export(Entry::$hook, active, |driver| unsafe { driver.$hook($( $ha ),*) })
                }
            )*
            $(
                /// # Safety
                /// As for the C function.
                #[cfg_attr(not(test), unsafe(no_mangle))]
                pub(super) unsafe extern "C" fn $count($( $ca: $ct ),*) -> Status {
                    // SAFETY: the program keeps the C function's contract.
                    guard::passed_on(Entry::$count, |driver| unsafe { driver.$count($( $ca ),*) })
                }
            )*
        }
    };
}

pub(crate) use interpose;

//! Pointers from C: checked for null, and nothing else, since nothing else can be checked.
//!
//! All values of these types come from callers of the C API, whose contract is CUDA's: a pointer that is not null is valid
//! for what the function reads or writes through it. Each `SAFETY` comment here names this fact, **Contract**.

use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;

use super::codes::{Code, Res};

/// Where a result goes, as `*mut T`.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Out<T>(pub(crate) *mut T);

/// What is read, as `*const T`.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct In<T>(pub(crate) *const T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Out<T> {}

impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for In<T> {}

impl<T> Out<T> {
    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Fails where there is no place for the result. To be called before anything is changed.
    pub(crate) fn check(self) -> Res {
        if self.is_null() { Err(Code::INVALID_VALUE) } else { Ok(()) }
    }

    /// Writes the result.
    pub(crate) fn set(self, value: T) -> Res {
        self.check()?;
        // SAFETY: Contract.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Writes the result where the caller wants it.
    pub(crate) fn set_if(self, value: T) {
        if !self.is_null() {
            // SAFETY: Contract.
            unsafe { self.0.write_unaligned(value) };
        }
    }

    /// What stands there before the call.
    pub(crate) fn get(self) -> Res<T>
    where
        T: Copy,
    {
        In(self.0.cast_const()).get()
    }

    /// Writes an array.
    pub(crate) fn set_all(self, values: impl IntoIterator<Item = T>) -> Res {
        self.check()?;
        for (at, value) in values.into_iter().enumerate() {
            // SAFETY: Contract; the caller has said how many there is room for, and gets no more.
            unsafe { self.0.add(at).write_unaligned(value) };
        }
        Ok(())
    }

    pub(crate) fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }
}

impl<T: Copy> In<T> {
    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    pub(crate) fn get(self) -> Res<T> {
        if self.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: Contract.
        Ok(unsafe { self.0.read_unaligned() })
    }

    /// An array of so many. None are read from null.
    pub(crate) fn all(self, count: usize) -> Res<Vec<T>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        // A count that no memory holds is a mistake, not a reason to abort.
        if self.is_null() || count > 1 << 24 {
            return Err(Code::INVALID_VALUE);
        }
        let mut values = vec![MaybeUninit::<T>::uninit(); count];
        // SAFETY: Contract: `count` elements can be read. The vector has as many.
        unsafe {
            std::ptr::copy_nonoverlapping(self.0.cast::<u8>(), values.as_mut_ptr().cast(), count * size_of::<T>())
        };
        // SAFETY: all elements were just written.
        Ok(values.into_iter().map(|value| unsafe { value.assume_init() }).collect())
    }
}

impl In<c_char> {
    /// The text, where there is one.
    pub(crate) fn text(self) -> Res<String> {
        if self.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: Contract: a C string.
        Ok(unsafe { CStr::from_ptr(self.0) }.to_string_lossy().into_owned())
    }
}

impl Out<c_char> {
    /// Writes a C string, cut to `length` bytes with its end.
    pub(crate) fn set_text(self, text: &str, length: i32) -> Res {
        let room = usize::try_from(length).ok().filter(|&n| n > 0).ok_or(Code::INVALID_VALUE)?;
        let bytes = text.bytes().take(room - 1).chain([0]);
        self.cast::<u8>().set_all(bytes)
    }
}

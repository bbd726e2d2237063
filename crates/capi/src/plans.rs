//! Plans of repeating steps, from one run of a program to the next.

use std::ffi::c_void;
use std::{ptr, slice};

use crate::handle::{check_out, device_number, get, stratalloc_allocator};
use crate::status::{Failure, guard, stratalloc_status};

/// The steps that plans are made for on a device, as bytes for `stratalloc_import_plan` in the program's next run. `*size` is how many there are; they are
/// copied to `buffer` if they fit in `capacity` bytes, and if not, nothing is. `buffer` may be null if `capacity` is 0. The plan may have
/// grown since an earlier call.
///
/// # Safety
/// `allocator` is null or a handle; `buffer` is null or has room for `capacity` bytes; `size` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_export_plan(
    allocator: *mut stratalloc_allocator,
    device: i32,
    buffer: *mut c_void,
    capacity: usize,
    size: *mut usize,
) -> stratalloc_status {
    guard(|| {
        check_out(size, "size")?;
        if buffer.is_null() && capacity > 0 {
            return Err(Failure::argument(format!("the buffer is null, and is to have {capacity} bytes")));
        }
        // SAFETY: as the caller promises.
        let bytes = unsafe { get(allocator) }?.allocator.export_plan(device_number(device)?)?;
        // SAFETY: `size` is not null, aligned, writable as the caller promises; `buffer` has room for what fits; the bytes are new ones.
        unsafe {
            if bytes.len() <= capacity {
                ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.cast::<u8>(), bytes.len());
            }
            *size = bytes.len();
        }
        Ok(())
    })
}

/// Takes over what `stratalloc_export_plan` gave: steps to look out for on a device, so that they are planned from the first time on. Anything else is
/// `STRATALLOC_INVALID_ARGUMENT`, and then nothing has changed. `steps`, how many there are, may be null.
///
/// # Safety
/// `allocator` is null or a handle; `bytes` is null or has `size` bytes; `steps` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_import_plan(
    allocator: *mut stratalloc_allocator,
    device: i32,
    bytes: *const c_void,
    size: usize,
    steps: *mut usize,
) -> stratalloc_status {
    guard(|| {
        if !steps.is_null() {
            check_out(steps, "steps")?;
        }
        if bytes.is_null() || size > isize::MAX as usize {
            return Err(Failure::argument(format!("the plan of {size} bytes is null, or too long")));
        }
        // SAFETY: as the caller promises.
        let (handle, bytes) = unsafe { (get(allocator)?, slice::from_raw_parts(bytes.cast::<u8>(), size)) };
        let count = handle.allocator.import_plan(device_number(device)?, bytes)?;
        if !steps.is_null() {
            // SAFETY: not null, aligned, writable as the caller promises.
            unsafe { *steps = count };
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{stratalloc_free, stratalloc_malloc};
    use crate::device::stratalloc_step;
    use crate::handle::{stratalloc_create, stratalloc_destroy, stratalloc_options};
    use crate::status::stratalloc_status::*;

    /// With plans on.
    fn made() -> *mut stratalloc_allocator {
        let config = c"plan:inline";
        let options = stratalloc_options {
            struct_size: size_of::<stratalloc_options>(),
            config: config.as_ptr(),
            devices: ptr::null(),
            device_count: 0,
            software_bytes: 1 << 30,
        };
        let mut handle = ptr::null_mut();
        // SAFETY: pointers of locals.
        assert_eq!(unsafe { stratalloc_create(&options, &mut handle) }, STRATALLOC_OK);
        handle
    }

    #[test]
    fn a_plan_goes_from_one_run_to_the_next() {
        // SAFETY: handles live until they are destroyed; pointers are those of locals.
        unsafe {
            let first = made();
            for _ in 0..4 {
                assert_eq!(stratalloc_step(first), STRATALLOC_OK);
                for round in 1..200usize {
                    let mut block = ptr::null_mut();
                    assert_eq!(stratalloc_malloc(first, round << 14, 0, ptr::null_mut(), &mut block), STRATALLOC_OK);
                    assert_eq!(stratalloc_free(first, block), STRATALLOC_OK);
                }
            }
            let mut size = 0;
            assert_eq!(stratalloc_export_plan(first, 0, ptr::null_mut(), 0, &mut size), STRATALLOC_OK);
            assert!(size > 0);
            let mut plan = vec![7u8; size];
            let mut again = 0;
            let short = stratalloc_export_plan(first, 0, plan.as_mut_ptr().cast(), size - 1, &mut again);
            assert_eq!((short, again, plan.iter().all(|&byte| byte == 7)), (STRATALLOC_OK, size, true));
            assert_eq!(stratalloc_export_plan(first, 0, plan.as_mut_ptr().cast(), size, &mut again), STRATALLOC_OK);
            stratalloc_destroy(first);

            let (second, mut steps) = (made(), 0);
            assert_eq!(stratalloc_import_plan(second, 0, plan.as_ptr().cast(), size, &mut steps), STRATALLOC_OK);
            assert!(steps > 0);
            for (bytes, length) in [(plan.as_ptr().cast(), size - 1), (ptr::null(), 3), (plan.as_ptr().cast(), 0)] {
                let refused = stratalloc_import_plan(second, 0, bytes, length, ptr::null_mut());
                assert_eq!(refused, STRATALLOC_INVALID_ARGUMENT);
            }
            assert_eq!(stratalloc_export_plan(second, 0, ptr::null_mut(), 1, &mut again), STRATALLOC_INVALID_ARGUMENT);
            assert_eq!(stratalloc_step(ptr::null_mut()), STRATALLOC_INVALID_ARGUMENT);
            stratalloc_destroy(second);
        }
    }
}

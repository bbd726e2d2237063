//! Structs that begin with their own size, so that a program and a library of different versions understand each other.
//!
//! Fields are only ever added at the end. A program says how much of a struct it knows; what it does not know reads as 0, and is not
//! written. A program may know more than the library: what it asks for there must be 0, and what it is told there is 0.

use std::mem::size_of;
use std::ptr;

use crate::status::{Failure, Outcome};

/// The largest size that is believed of a struct. Anything above is no size but chance.
const SIZE_MAX: usize = 1 << 16;

/// A struct of the C interface whose first field is its size.
///
/// # Safety
/// `repr(C)`, with a `usize` first; all zeros is a value, and so is any mixture of zeros and what a program may put there.
pub(crate) unsafe trait Sized_: Copy {
    /// Its name in the header.
    const NAME: &'static str;
    /// As much of it as any program must know: to the end of the fields without which it makes no sense.
    const SIZE_MIN: usize;
}

/// Checks the size that a struct of the caller's says it has.
///
/// # Safety
/// `from` is null, or points to a struct that begins with its size.
unsafe fn said_size<T: Sized_>(from: *const T) -> Outcome<usize> {
    if from.is_null() {
        return Err(Failure::argument(format!("the pointer to {} is null", T::NAME)));
    }
    if !from.is_aligned() {
        return Err(Failure::argument(format!("the pointer to {} is not aligned", T::NAME)));
    }
    // SAFETY: not null, aligned, and the first field is there, as the caller promises.
    let size = unsafe { *from.cast::<usize>() };
    if (T::SIZE_MIN..=SIZE_MAX).contains(&size) {
        return Ok(size);
    }
    let (name, known, min) = (T::NAME, size_of::<T>(), T::SIZE_MIN);
    Err(Failure::argument(format!(
        "struct_size of {name} is {size}: set it to sizeof({name}), {known} here and at least {min}"
    )))
}

/// Reads a struct of the caller's: zeros where the caller knows less.
///
/// # Safety
/// `from` is null, or points to as many bytes as its first field says.
pub(crate) unsafe fn read<T: Sized_>(from: *const T) -> Outcome<T> {
    // SAFETY: as the caller promises.
    let size = unsafe { said_size(from) }?;
    let known = size.min(size_of::<T>());
    // SAFETY: all zeros is a value of a `Sized_`; `known` bytes are there to be read and to be written, and they make a value.
    let value = unsafe {
        let mut value: T = std::mem::zeroed();
        ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut value).cast::<u8>(), known);
        value
    };
    // SAFETY: the caller promises `size` bytes.
    let beyond = (known..size).all(|at| unsafe { *from.cast::<u8>().add(at) } == 0);
    if beyond {
        return Ok(value);
    }
    let name = T::NAME;
    Err(Failure::argument(format!(
        "{name} has {size} bytes, of which this library knows {known}; the others are not 0: they ask for what it cannot do"
    )))
}

/// Checks that a struct of the caller's can be written, before there is anything to write.
///
/// # Safety
/// As for [`write`].
pub(crate) unsafe fn writable<T: Sized_>(to: *mut T) -> Outcome<()> {
    // SAFETY: as the caller promises.
    unsafe { said_size(to) }.map(drop)
}

/// Writes to a struct of the caller's what the caller knows of it, and zeros where the caller knows more. Its size stays as it was.
///
/// # Safety
/// `to` is null, or points to as many bytes as its first field says, which may be written.
pub(crate) unsafe fn write<T: Sized_>(to: *mut T, value: &T) -> Outcome<()> {
    // SAFETY: as the caller promises.
    let size = unsafe { said_size(to) }?;
    let (known, first) = (size.min(size_of::<T>()), size_of::<usize>());
    // SAFETY: both have `known` bytes, the caller's has `size`; they do not overlap, since `value` is borrowed from here.
    unsafe {
        let (to, from) = (to.cast::<u8>(), ptr::from_ref(value).cast::<u8>());
        ptr::copy_nonoverlapping(from.add(first), to.add(first), known - first);
        ptr::write_bytes(to.add(known), 0, size - known);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Pair {
        struct_size: usize,
        first: u64,
        second: u64,
    }

    // SAFETY: numbers only, the first a `usize`.
    unsafe impl Sized_ for Pair {
        const NAME: &'static str = "pair";
        const SIZE_MIN: usize = 16;
    }

    #[repr(C)]
    struct Larger {
        pair: Pair,
        third: u64,
    }

    fn larger(size: usize, third: u64) -> Larger {
        Larger { pair: Pair { struct_size: size, first: 7, second: 8 }, third }
    }

    #[test]
    fn what_the_caller_does_not_know_reads_as_zero_and_is_not_written() {
        let mut value = larger(16, 9);
        // SAFETY: the struct has at least as many bytes as it says.
        let read_back = unsafe { read(&raw const value.pair) }.unwrap();
        assert_eq!((read_back.first, read_back.second), (7, 0));
        // SAFETY: as above.
        unsafe { write(&raw mut value.pair, &Pair { struct_size: 24, first: 1, second: 2 }) }.unwrap();
        assert_eq!((value.pair, value.third), (Pair { struct_size: 16, first: 1, second: 8 }, 9));
    }

    #[test]
    fn what_the_library_does_not_know_must_be_zero_and_is_told_as_zero() {
        let mut value = larger(32, 9);
        // SAFETY: the whole struct is behind the pointer.
        let refused = unsafe { read((&raw const value).cast::<Pair>()) }.unwrap_err();
        assert!(refused.text.contains("32 bytes, of which this library knows 24"), "{}", refused.text);
        // SAFETY: as above.
        unsafe { write((&raw mut value).cast::<Pair>(), &Pair { struct_size: 24, first: 1, second: 2 }) }.unwrap();
        assert_eq!((value.pair, value.third), (Pair { struct_size: 32, first: 1, second: 2 }, 0));
        // SAFETY: as above.
        assert!(unsafe { read((&raw const value).cast::<Pair>()) }.is_ok());
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for size in [0, 1, 15, SIZE_MAX + 1, usize::MAX] {
            let value = larger(size, 0);
            // SAFETY: a size that is refused is all that is read.
            let refused = unsafe { read(&raw const value.pair) }.unwrap_err();
            assert!(refused.text.contains(&format!("is {size}:")), "{}", refused.text);
        }
        // SAFETY: null is allowed.
        assert!(unsafe { read(ptr::null::<Pair>()) }.unwrap_err().text.contains("null"));
        // SAFETY: null is allowed.
        assert!(unsafe { writable(ptr::null_mut::<Pair>()) }.is_err());
    }
}

//! As much of an ELF file as tells whether the dynamic linker loads it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// A segment of this type names the dynamic linker.
const PT_INTERP: u32 = 3;

/// More program headers than any linker writes are not read.
const HEADERS_MAX: u64 = 4096;

/// What was read of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Elf {
    /// 1 for 32 bits, 2 for 64.
    pub(super) class: u8,
    /// The machine's number.
    pub(super) machine: u16,
    /// Whether a dynamic linker is named. Libraries name none.
    pub(super) is_dynamic: bool,
}

impl Elf {
    /// Reads a file's headers. Fails with words that say what it is instead.
    pub(super) fn read(path: &Path) -> Result<Elf, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        Elf::read_from(file).ok_or_else(|| "not an ELF file".to_string())
    }

    fn read_from(mut file: impl Read + Seek) -> Option<Elf> {
        let mut header = [0u8; 64];
        file.read_exact(&mut header[..52]).ok()?;
        if header[..4] != *b"\x7fELF" || header[5] != 1 {
            return None;
        }
        let class = header[4];
        if class == 2 {
            file.read_exact(&mut header[52..]).ok()?;
        }
        let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let (offset, size, count) = match class {
            1 => (u64::from(word(&header, 28)?), half(42), half(44)),
            2 => (u64::from(word(&header, 32)?) | u64::from(word(&header, 36)?) << 32, half(54), half(56)),
            _ => return None,
        };
        let mut is_dynamic = false;
        for index in 0..u64::from(count).min(HEADERS_MAX) {
            let at = offset.checked_add(index * u64::from(size))?;
            let mut kind = [0u8; 4];
            file.seek(SeekFrom::Start(at)).ok()?;
            file.read_exact(&mut kind).ok()?;
            is_dynamic |= u32::from_le_bytes(kind) == PT_INTERP;
        }
        Some(Elf { class, machine: half(18), is_dynamic })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn this_program_is_loaded_by_the_dynamic_linker() {
        let own = Elf::read(&std::env::current_exe().unwrap()).unwrap();
        assert!(own.is_dynamic && own.class == 2);
    }

    #[test]
    fn damaged_files_are_refused_and_nothing_is_read_beyond_them() {
        let whole = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for length in [0, 3, 51, 63] {
            assert_eq!(Elf::read_from(Cursor::new(&whole[..length])), None, "{length}");
        }
        let mut odd = whole[..4096].to_vec();
        odd[32..40].fill(0xff);
        assert_eq!(Elf::read_from(Cursor::new(odd)), None);
        assert!(Elf::read(Path::new("/nonexistent")).unwrap_err().contains("No such file"));
    }
}

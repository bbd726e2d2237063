//! What a tier of files is to be.

use std::path::PathBuf;

use crate::units::ByteSize;

bitflags::bitflags! {
    /// What a tier of files makes use of where the system has it. Each has a fallback.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Means: u32 {
        /// io_uring. Else `pread` and `pwrite` in threads.
        const RING = 1;
        /// O_DIRECT. Else through the page cache.
        const DIRECT = 2;
        /// O_TMPFILE: a file that never has a name. Else one that is made with a name and loses it at once.
        const NAMELESS = 4;
        /// fallocate, so that a full disk is known before bytes go there. Else a sparse file, and a full disk is known when they do.
        const PREALLOCATED = 8;
    }
}

/// A folder, and how much of its file system may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmePath {
    /// The folder in which the file is made. The file has no name there, and is gone when its process is.
    pub folder: PathBuf,
    /// The most bytes of it.
    pub bytes: u64,
}

/// A tier of files: [`open`](super::open) makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmeSpec {
    /// One file each. Several are striped, best on disks of their own.
    pub paths: Vec<NvmePath>,
    /// How many bytes go to one file before the next one's turn: a multiple of 64 KiB. 4 MiB unless told.
    pub stripe: u64,
    /// How many reads and writes of files may be under way at once, and how many transfers: 1 to 4096. 64 unless told.
    pub depth: usize,
    /// The longest read or write of a file: a multiple of 4 KiB, at most 1 GiB. 1 MiB unless told.
    pub piece: u64,
    /// Whether the files are encrypted, with a key that is drawn for this tier and never leaves the process.
    pub encrypt: bool,
    /// What may be used. All of it unless told.
    pub means: Means,
}

impl NvmeSpec {
    /// One file in each of these folders, of at most that many bytes.
    pub fn new(paths: impl IntoIterator<Item = (impl Into<PathBuf>, u64)>) -> NvmeSpec {
        let paths = paths.into_iter().map(|(folder, bytes)| NvmePath { folder: folder.into(), bytes }).collect();
        NvmeSpec { paths, stripe: 4 << 20, depth: 64, piece: 1 << 20, encrypt: false, means: Means::all() }
    }
}

/// What offsets, sizes and buffers are multiples of: what disks with O_DIRECT ask for.
pub(super) const PAGE: u64 = 4096;

/// What is encrypted at once, and the least of a path that is used.
pub(super) const UNIT: u64 = 64 << 10;

/// In what steps files grow.
#[cfg(all(feature = "nvme", target_os = "linux"))]
pub(super) const STEP: u64 = 256 << 20;

impl NvmeSpec {
    /// Why it makes no sense, in words.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.paths.is_empty() {
            return Err("no folder is named".to_string());
        }
        if let Some(path) = self.paths.iter().find(|path| path.bytes < UNIT) {
            let (folder, bytes) = (path.folder.display(), ByteSize(path.bytes));
            return Err(format!("{folder}: {bytes} is too little; give it {} or more", ByteSize(UNIT)));
        }
        let total = self.paths.iter().try_fold(0u64, |total, path| total.checked_add(path.bytes));
        if total.is_none_or(|total| total > i64::MAX as u64) {
            return Err("the sizes add up to more than a file can have".to_string());
        }
        if self.stripe == 0 || !self.stripe.is_multiple_of(UNIT) {
            return Err(format!("a stripe of {} is no multiple of {}", ByteSize(self.stripe), ByteSize(UNIT)));
        }
        if !(1..=4096).contains(&self.depth) {
            return Err(format!("a depth of {} is not within 1 to 4096", self.depth));
        }
        if self.piece == 0 || !self.piece.is_multiple_of(PAGE) || self.piece > 1 << 30 {
            return Err(format!("pieces of {} are no multiple of 4 KiB up to 1 GiB", ByteSize(self.piece)));
        }
        Ok(())
    }
}

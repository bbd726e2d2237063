//! Encryption at rest: AES-256-GCM, with a key that is drawn for the tier and never leaves the process.
//!
//! What one transfer writes is sealed in ranges of up to 1 MiB. A nonce is a count of ranges sealed, so that none is used twice with the key: not
//! for another slot, not for the same one written again. Nonces and tags stay in memory, under 64 bytes a range. So whoever reads the disk learns
//! sizes and times and nothing else, and whoever writes to it is found out: bytes that were altered, moved, or put back as they were before do not
//! open. What the process's own memory holds is not protected.
//!
//! A range opens as a whole. What is read in other pieces than it was written in passes through a buffer; what is written over a part of a range
//! loses the rest of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, KeyInit, Tag};
use parking_lot::Mutex;

use super::files::memory::Memory;
use super::files::private::{draw, reason};

/// What is sealed at once, at most.
const RANGE: usize = 1 << 20;

/// How many bytes of buffers are kept: fresh memory costs more than it costs to encrypt.
const IDLE_BYTES: usize = 64 << 20;

/// What opens one range.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seal {
    /// In the tier.
    pub(super) at: u64,
    pub(super) size: u64,
    nonce: u64,
    tag: [u8; 16],
}

impl Seal {
    fn end(&self) -> u64 {
        self.at + self.size
    }
}

/// A range that is not what was stored: its place, and the first halves of both tags.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Altered {
    pub(super) at: u64,
    pub(super) size: u64,
    pub(super) expected: u64,
    pub(super) found: u64,
}

/// A key, and the seals of what was sealed with it.
pub(super) struct Cipher {
    key: Aes256Gcm,
    nonces: AtomicU64,
    /// By place. They do not overlap.
    seals: Mutex<BTreeMap<u64, Seal>>,
    /// Buffers to be used again.
    idle: Mutex<Vec<Memory>>,
}

fn nonce(count: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&count.to_le_bytes());
    nonce
}

fn half(tag: &[u8]) -> u64 {
    u64::from_le_bytes(tag[..8].try_into().expect("8 bytes"))
}

impl Cipher {
    pub(super) fn new() -> Result<Cipher, String> {
        let mut key = [0; 32];
        draw(&mut key).map_err(|errno| format!("no key can be drawn: {}", reason(errno)))?;
        let key = Aes256Gcm::new(&key.into());
        Ok(Cipher { key, nonces: AtomicU64::new(1), seals: Mutex::default(), idle: Mutex::default() })
    }

    /// Encrypts `bytes`, which are to lie at `at`, where nothing else can be opened from now on. `None` where there is no memory.
    pub(super) fn seal(&self, at: u64, bytes: &[u8]) -> Option<(Memory, Vec<Seal>)> {
        let mut sealed = self.buffer(bytes.len())?;
        self.forget(at, bytes.len() as u64);
        let mut seals = Vec::with_capacity(bytes.len().div_ceil(RANGE));
        let mut place = at;
        for (range, out) in bytes.chunks(RANGE).zip(sealed.bytes_mut().chunks_mut(RANGE)) {
            let count = self.nonces.fetch_add(1, Ordering::Relaxed);
            let both = InOutBuf::new(range, out).ok()?;
            let tag = self.key.encrypt_inout_detached(&nonce(count).into(), &place.to_le_bytes(), both).ok()?;
            let size = range.len() as u64;
            seals.push(Seal { at: place, size, nonce: count, tag: tag.into() });
            place += size;
        }
        Some((sealed, seals))
    }

    /// What was sealed lies on the disk now.
    pub(super) fn keep(&self, seals: Vec<Seal>) {
        self.seals.lock().extend(seals.into_iter().map(|seal| (seal.at, seal)));
    }

    /// The seals of what lies here, in order; they may reach beyond it on both sides. `None` where a part of it was never stored.
    pub(super) fn covering(&self, at: u64, size: u64) -> Option<Vec<Seal>> {
        let seals = self.seals.lock();
        let first = *seals.range(..=at).next_back()?.0;
        let mut reached = at;
        let mut found = Vec::new();
        for seal in seals.range(first..at + size).map(|(_, seal)| *seal) {
            if seal.at > reached || seal.end() <= reached {
                return None;
            }
            reached = seal.end();
            found.push(seal);
        }
        (reached >= at + size).then_some(found)
    }

    /// Decrypts what lay in these ranges, one after another.
    pub(super) fn open(&self, seals: &[Seal], bytes: &mut [u8]) -> Result<(), Altered> {
        let mut rest = bytes;
        for seal in seals {
            let (range, next) = rest.split_at_mut(seal.size as usize);
            let (nonce, place) = (nonce(seal.nonce).into(), seal.at.to_le_bytes());
            if self.key.decrypt_inout_detached(&nonce, &place, (&mut *range).into(), &Tag::from(seal.tag)).is_err() {
                // Encrypting twice gives the bytes back, and the tag that they should have had.
                let again = |range: &mut [u8]| self.key.encrypt_inout_detached(&nonce, &place, range.into());
                let found = again(range).and_then(|_| again(range)).map_or(0, |tag| half(&tag));
                return Err(Altered { at: seal.at, size: seal.size, expected: half(&seal.tag), found });
            }
            rest = next;
        }
        Ok(())
    }

    /// Nothing that lay here can be opened any more.
    pub(super) fn forget(&self, at: u64, size: u64) {
        let mut seals = self.seals.lock();
        let before = seals.range(..at).next_back().filter(|(_, seal)| seal.end() > at).map(|(&at, _)| at);
        let within = seals.range(at..at + size).map(|(&at, _)| at);
        let gone: Vec<u64> = before.into_iter().chain(within).collect();
        for at in gone {
            seals.remove(&at);
        }
    }

    /// A buffer of this size.
    pub(super) fn buffer(&self, size: usize) -> Option<Memory> {
        let mut idle = self.idle.lock();
        match idle.iter().position(|buffer| buffer.bytes().len() == size) {
            Some(index) => Some(idle.swap_remove(index)),
            None => {
                drop(idle);
                Memory::new(size)
            }
        }
    }

    /// Takes a buffer back.
    pub(super) fn recycle(&self, buffer: Memory) {
        let mut idle = self.idle.lock();
        idle.push(buffer);
        while idle.iter().map(|buffer| buffer.bytes().len()).sum::<usize>() > IDLE_BYTES {
            idle.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 2 * RANGE as u64 + 8192;

    fn plain() -> Vec<u8> {
        (0..SIZE).map(|index| ((index * 31) >> 3) as u8).collect()
    }

    #[test]
    fn what_is_sealed_opens_once_it_is_kept_and_only_there() {
        let cipher = Cipher::new().unwrap();
        let plain = plain();
        let (sealed, seals) = cipher.seal(4096, &plain).unwrap();
        let stored = sealed.bytes().to_vec();
        assert!(stored.chunks(64).zip(plain.chunks(64)).all(|(stored, plain)| stored != plain));
        assert!(cipher.covering(4096, SIZE).is_none());
        cipher.keep(seals);
        let seals = cipher.covering(4096, SIZE).unwrap();
        assert_eq!(seals.iter().map(|seal| seal.size).sum::<u64>(), SIZE);
        let mut back = stored.clone();
        cipher.open(&seals, &mut back).unwrap();
        assert_eq!(back, plain);
        // Bytes moved to another place are found out.
        let mut moved = stored.clone();
        moved[..2 * RANGE].rotate_left(RANGE);
        assert_eq!(cipher.open(&seals, &mut moved).unwrap_err().at, 4096);
        // A part of it needs whole ranges.
        let range = RANGE as u64;
        let middle: Vec<u64> = cipher.covering(range, range).unwrap().iter().map(|seal| seal.at).collect();
        assert_eq!(middle, [4096, 4096 + range]);
        for (at, size) in [(0, 8192), (4096, SIZE + 1), (4096 + SIZE, 1), (0, 4096)] {
            assert!(cipher.covering(at, size).is_none(), "{at} {size}");
        }
        // Of what is written over in part nothing is left.
        cipher.forget(4096 + range - 1, 2);
        assert!(cipher.covering(4096, 1).is_none() && cipher.covering(4096 + 2 * range - 1, 1).is_none());
        assert!(cipher.covering(4096 + 2 * range, 8192).is_some());
        cipher.forget(0, u64::MAX);
        assert!(cipher.seals.lock().is_empty());
    }

    #[test]
    fn any_altered_bit_and_any_older_version_is_found_out() {
        let cipher = Cipher::new().unwrap();
        let plain = plain();
        let (older, seals) = cipher.seal(0, &plain).unwrap();
        cipher.keep(seals);
        let (sealed, seals) = cipher.seal(0, &plain).unwrap();
        cipher.keep(seals);
        let stored = sealed.bytes().to_vec();
        assert_ne!(stored, older.bytes(), "the same bytes never look the same");
        let seals = cipher.covering(0, SIZE).unwrap();
        assert_eq!(cipher.open(&seals, &mut older.bytes().to_vec()).unwrap_err().at, 0);
        let range = RANGE as u64;
        for bit in [0, 7, 8 * range - 1, 8 * range, 8 * SIZE - 1] {
            let mut altered = stored.clone();
            altered[bit as usize / 8] ^= 1 << (bit % 8);
            let error = cipher.open(&seals, &mut altered).unwrap_err();
            assert_eq!(error.at, bit / 8 / range * range);
            assert_ne!(error.expected, error.found);
        }
        assert!(Cipher::new().unwrap().open(&seals, &mut stored.clone()).is_err(), "keys differ");
    }
}

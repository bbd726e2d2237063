//! Encryption at rest: AES-256-GCM by units of 64 KiB, with a key that is drawn for the tier and never leaves the process.
//!
//! A nonce is a count of units sealed, so that none is used twice with the key: not for another slot, not for the same one written again.
//! Nonces and tags stay in memory, 24 bytes a unit. So whoever reads the disk learns sizes and times and nothing else, and whoever writes to it
//! is found out: bytes that were altered, swapped, or put back as they were before do not open. What the process's own memory holds is not protected.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, KeyInit, Tag};
use parking_lot::Mutex;

use super::files::memory::Memory;
use super::files::private::{draw, reason};
use super::spec::UNIT;

/// What opens one unit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seal {
    nonce: u64,
    tag: [u8; 16],
}

/// Why a unit does not open.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unopened {
    /// Nothing was ever stored there.
    Empty,
    /// What lies there is not what was stored. The first halves of both tags.
    Altered { expected: u64, found: u64 },
}

/// A key, and the seals of what was sealed with it.
pub(super) struct Cipher {
    key: Aes256Gcm,
    nonces: AtomicU64,
    /// By the unit's number in the tier. `None`: no such unit.
    seals: Mutex<HashMap<u64, Seal>>,
    /// Buffers to be used again.
    idle: Mutex<Vec<Memory>>,
}

/// How many buffers are kept.
const IDLE_MAX: usize = 8;

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

    /// Encrypts `bytes`, whole units, which are to lie at `at`. `None` where there is no memory.
    pub(super) fn seal(&self, at: u64, bytes: &[u8]) -> Option<(Memory, Vec<Seal>)> {
        let idle = {
            let mut idle = self.idle.lock();
            let fits = idle.iter().position(|buffer| buffer.bytes().len() == bytes.len());
            fits.map(|index| idle.swap_remove(index))
        };
        let mut sealed = idle.or_else(|| Memory::new(bytes.len()))?;
        let count = bytes.len() / UNIT as usize;
        let first = self.nonces.fetch_add(count as u64, Ordering::Relaxed);
        let mut seals = Vec::with_capacity(count);
        let pairs = bytes.chunks_exact(UNIT as usize).zip(sealed.bytes_mut().chunks_exact_mut(UNIT as usize));
        for (index, (unit, out)) in (0..).zip(pairs) {
            let count: u64 = first + index;
            let place = (at / UNIT + index).to_le_bytes();
            let both = InOutBuf::new(unit, out).ok()?;
            let tag = self.key.encrypt_inout_detached(&nonce(count).into(), &place, both).ok()?;
            seals.push(Seal { nonce: count, tag: tag.into() });
        }
        Some((sealed, seals))
    }

    /// What was sealed lies on the disk now.
    pub(super) fn keep(&self, at: u64, seals: Vec<Seal>) {
        self.seals.lock().extend((at / UNIT..).zip(seals));
    }

    /// Decrypts `bytes`, whole units, which lay at `at`. Else the first unit that does not open, by its place.
    pub(super) fn open(&self, at: u64, bytes: &mut [u8]) -> Result<(), (u64, Unopened)> {
        for (index, unit) in (at / UNIT..).zip(bytes.chunks_exact_mut(UNIT as usize)) {
            let seal = self.seals.lock().get(&index).copied().ok_or((index * UNIT, Unopened::Empty))?;
            let (nonce, place) = (nonce(seal.nonce).into(), index.to_le_bytes());
            let tag = Tag::from(seal.tag);
            if self.key.decrypt_inout_detached(&nonce, &place, (&mut *unit).into(), &tag).is_err() {
                // Encrypting twice gives the bytes back, and the tag that they should have had.
                let again = |unit: &mut [u8]| self.key.encrypt_inout_detached(&nonce, &place, unit.into());
                let found = again(unit).and_then(|_| again(unit)).map_or(0, |tag| half(&tag));
                return Err((index * UNIT, Unopened::Altered { expected: half(&seal.tag), found }));
            }
        }
        Ok(())
    }

    /// Nothing is stored in these units any more.
    pub(super) fn forget(&self, at: u64, size: u64) {
        let mut seals = self.seals.lock();
        for unit in at / UNIT..(at + size).div_ceil(UNIT) {
            seals.remove(&unit);
        }
    }

    /// Takes a buffer back.
    pub(super) fn recycle(&self, sealed: Memory) {
        let mut idle = self.idle.lock();
        if idle.len() >= IDLE_MAX {
            idle.swap_remove(0);
        }
        idle.push(sealed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(count: usize) -> Vec<u8> {
        (0..count * UNIT as usize).map(|index| (index * 31 >> 3) as u8).collect()
    }

    #[test]
    fn what_is_sealed_opens_once_it_is_kept_and_only_there() {
        let cipher = Cipher::new().unwrap();
        let plain = units(3);
        let (sealed, seals) = cipher.seal(UNIT, &plain).unwrap();
        let stored = sealed.bytes().to_vec();
        assert!(stored.chunks(64).zip(plain.chunks(64)).all(|(stored, plain)| stored != plain));
        assert_eq!(cipher.open(UNIT, &mut stored.clone()), Err((UNIT, Unopened::Empty)));
        cipher.keep(UNIT, seals);
        let mut back = stored.clone();
        cipher.open(UNIT, &mut back).unwrap();
        assert_eq!(back, plain);
        // Swapped units are found out.
        let mut swapped = stored.clone();
        swapped.rotate_left(UNIT as usize);
        assert!(matches!(cipher.open(UNIT, &mut swapped), Err((UNIT, Unopened::Altered { .. }))));
        cipher.forget(UNIT, 3 * UNIT);
        assert_eq!(cipher.open(UNIT, &mut stored.clone()), Err((UNIT, Unopened::Empty)));
    }

    #[test]
    fn any_altered_bit_and_any_older_version_is_found_out() {
        let cipher = Cipher::new().unwrap();
        let plain = units(2);
        let (older, seals) = cipher.seal(0, &plain).unwrap();
        cipher.keep(0, seals);
        let older = older.bytes().to_vec();
        let (sealed, seals) = cipher.seal(0, &plain).unwrap();
        cipher.keep(0, seals);
        let stored = sealed.bytes().to_vec();
        assert_ne!(stored, older, "the same bytes never look the same");
        assert!(matches!(cipher.open(0, &mut older.clone()), Err((0, Unopened::Altered { .. }))));
        for bit in [0, 7, 8 * UNIT - 1, 8 * UNIT, 16 * UNIT - 1] {
            let mut altered = stored.clone();
            altered[bit as usize / 8] ^= 1 << (bit % 8);
            let (at, unopened) = cipher.open(0, &mut altered).unwrap_err();
            assert_eq!(at, bit / 8 / UNIT * UNIT);
            assert!(matches!(unopened, Unopened::Altered { expected, found } if expected != found), "{unopened:?}");
        }
        let other = Cipher::new().unwrap();
        other.keep(0, cipher.seals.lock().iter().map(|(_, seal)| *seal).collect());
        assert!(other.open(0, &mut stored.clone()).is_err(), "keys differ");
    }
}

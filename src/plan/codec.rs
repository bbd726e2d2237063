//! Steps as bytes, for the next run. Where blocks lie is not among them: that is worked out again, for the addresses that there are then.
//!
//! Little-endian: the eight bytes `stplan\r\n`, the version, the number of steps, and for each step its number of requests and for each
//! request its granules and its life, all of 32 bits; at the end the FNV-1a hash of all that, of 64 bits.

use super::step::{Block, Step};
use crate::error::PlanError;

/// A text tool that changes line ends makes it something else.
const MAGIC: [u8; 8] = *b"stplan\r\n";
const VERSION: u32 = 1;
/// Bytes before the first step.
const HEAD: usize = MAGIC.len() + 8;
/// The checksum.
const TAIL: usize = 8;
/// The most steps.
const STEPS_MAX: u32 = 64;

/// Steps as bytes.
pub fn encode<'a>(steps: impl IntoIterator<Item = &'a Step>) -> Vec<u8> {
    let steps: Vec<&Step> = steps.into_iter().take(STEPS_MAX as usize).collect();
    let mut bytes = MAGIC.to_vec();
    let mut put = |number: u32| bytes.extend(number.to_le_bytes());
    put(VERSION);
    put(steps.len() as u32);
    for step in steps {
        put(step.len() as u32);
        step.blocks().iter().flat_map(|block| [block.granules, block.life]).for_each(&mut put);
    }
    bytes.extend(hash(&bytes).to_le_bytes());
    bytes
}

/// Steps from the bytes that [`encode`] made. Whatever the bytes are, it neither panics nor takes more memory than a few times theirs.
pub fn decode(bytes: &[u8]) -> Result<Vec<Step>, PlanError> {
    if !bytes.starts_with(&MAGIC[..bytes.len().min(MAGIC.len())]) {
        return Err(PlanError::NotAPlan);
    }
    let mut reader = Reader { bytes, at: MAGIC.len() };
    let version = reader.number()?;
    if version != VERSION {
        return Err(PlanError::Version { found: version, known: VERSION });
    }
    let count = reader.number()?;
    let refuse = |step: usize, what| Err(PlanError::Step { step, what });
    if count > STEPS_MAX {
        return refuse(STEPS_MAX as usize, "there are more than 64");
    }
    let mut steps = Vec::new();
    for number in 0..count as usize {
        let len = reader.number()? as usize;
        if len == 0 || len > Step::MAX {
            return refuse(number, "it has no requests, or more than 131072");
        }
        // Before memory is taken for it.
        reader.has(len * 8)?;
        let mut block = || Ok(Block { granules: reader.number()?, life: reader.number()? });
        let blocks = (0..len).map(|_| block()).collect::<Result<Vec<_>, PlanError>>()?;
        match Step::new(blocks) {
            Some(step) => steps.push(step),
            None => return refuse(number, "a block has no size, or a life longer than the step"),
        }
    }
    let end = reader.at;
    reader.has(TAIL)?;
    let excess = bytes.len() - end - TAIL;
    if excess > 0 {
        return Err(PlanError::Trailing { excess });
    }
    let found = u64::from_le_bytes(bytes[end..].try_into().expect("eight bytes, as was checked"));
    let computed = hash(&bytes[..end]);
    if found != computed {
        return Err(PlanError::Checksum { found, computed });
    }
    Ok(steps)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn has(&self, more: usize) -> Result<(), PlanError> {
        let (len, wanted) = (self.bytes.len(), self.at + more);
        if len < wanted { Err(PlanError::CutOff { len, wanted: wanted.max(HEAD + TAIL) }) } else { Ok(()) }
    }

    fn number(&mut self) -> Result<u32, PlanError> {
        self.has(4)?;
        let bytes = self.bytes[self.at..self.at + 4].try_into().expect("four bytes, as was checked");
        self.at += 4;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop::collection::vec((1..u32::MAX, 0_u32..9), 9..40).prop_map(|blocks| {
            Step::new(blocks.into_iter().map(|(granules, life)| Block { granules, life }).collect()).unwrap()
        });
        prop::collection::vec(step, 0..5)
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(steps in steps()) {
            prop_assert_eq!(decode(&encode(&steps)), Ok(steps));
        }

        #[test]
        fn whatever_is_cut_off_or_changed_is_refused(steps in steps(), cut: prop::sample::Index, bit in 0..8_u32) {
            let bytes = encode(&steps);
            let at = cut.index(bytes.len());
            prop_assert!(decode(&bytes[..at]).is_err());
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            prop_assert!(decode(&changed).is_err());
            changed[at] ^= 1 << bit;
            changed.push(0);
            prop_assert_eq!(decode(&changed), Err(PlanError::Trailing { excess: 1 }));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, rest: Vec<u8>) {
            prop_assert!(decode(&bytes).is_err());
            let mut plausible = MAGIC.to_vec();
            plausible.extend([1, 0, 0, 0]);
            plausible.extend(rest);
            prop_assert!(decode(&plausible).is_err());
        }
    }

    /// With the checksum made right again, so that what is meant is what refuses it.
    fn with(numbers: &[u32]) -> Result<Vec<Step>, PlanError> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(hash(&bytes).to_le_bytes());
        decode(&bytes)
    }

    #[test]
    fn each_refusal_says_what_is_wrong() {
        assert_eq!(decode(b"something else"), Err(PlanError::NotAPlan));
        assert_eq!(decode(b""), Err(PlanError::CutOff { len: 0, wanted: HEAD + TAIL }));
        assert_eq!(with(&[2, 0]), Err(PlanError::Version { found: 2, known: 1 }));
        assert!(matches!(with(&[1, 65]), Err(PlanError::Step { step: 64, .. })));
        assert!(matches!(with(&[1, 1, 0]), Err(PlanError::Step { step: 0, .. })));
        assert!(matches!(with(&[1, 1, u32::MAX]), Err(PlanError::Step { step: 0, .. })));
        assert!(matches!(with(&[1, 1, 131_072, 5, 1]), Err(PlanError::CutOff { .. })));
        assert!(matches!(with(&[1, 1, 1, 0, 1]), Err(PlanError::Step { step: 0, .. })));
        assert!(matches!(with(&[1, 2, 1, 5, 1, 1, 5, 2]), Err(PlanError::Step { step: 1, .. })));
        assert_eq!(with(&[1, 1, 1, 5, 1]).map(|steps| steps.len()), Ok(1));
        assert_eq!(with(&[1, 0]), Ok(Vec::new()));
    }
}

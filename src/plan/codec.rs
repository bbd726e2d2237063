//! Steps as bytes, for the next run. Where blocks lie is not among them: that is worked out again, for the addresses that there are then.
//!
//! Little-endian: the eight bytes `stplan\r\n`, the version, the number of steps, the most bytes in use (64 bits), and for each step its
//! number of requests and for each request its granules and its life, of 32 bits where nothing else is said; at the end the FNV-1a hash of
//! all that, of 64 bits.

use std::sync::Arc;

use super::step::{Block, Step};
use crate::error::PlanError;

/// A text tool that changes line ends makes it something else.
const MAGIC: [u8; 8] = *b"stplan\r\n";
const VERSION: u32 = 2;
/// Bytes before the first step.
const HEAD: usize = MAGIC.len() + 16;
/// The checksum.
const TAIL: usize = 8;
/// The most steps.
const STEPS_MAX: u32 = 64;

/// What one run tells the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Export {
    /// The most bytes in use on the device at one time.
    pub needs: u64,
    /// The steps that were followed; those that count most come first, at most 64.
    pub steps: Vec<Arc<Step>>,
}

/// An export as bytes.
pub fn encode(export: &Export) -> Vec<u8> {
    let steps = &export.steps[..export.steps.len().min(STEPS_MAX as usize)];
    let mut bytes = MAGIC.to_vec();
    let mut put = |number: u32| bytes.extend(number.to_le_bytes());
    put(VERSION);
    put(steps.len() as u32);
    [export.needs as u32, (export.needs >> u32::BITS) as u32].into_iter().for_each(&mut put);
    for step in steps {
        put(step.len() as u32);
        step.blocks().iter().flat_map(|block| [block.granules, block.life]).for_each(&mut put);
    }
    bytes.extend(hash(&bytes).to_le_bytes());
    bytes
}

/// An export from the bytes that [`encode`] made. Whatever the bytes are, it neither panics nor takes more memory than a few times theirs.
pub fn decode(bytes: &[u8]) -> Result<Export, PlanError> {
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
    let [low, high] = [reader.number()?, reader.number()?].map(u64::from);
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
            Some(step) => steps.push(Arc::new(step)),
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
    Ok(Export { needs: low | high << u32::BITS, steps })
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

    fn exports() -> impl Strategy<Value = Export> {
        let step = prop::collection::vec((1..u32::MAX, 0_u32..9), 9..40).prop_map(|blocks| {
            let blocks = blocks.into_iter().map(|(granules, life)| Block { granules, life });
            Arc::new(Step::new(blocks.collect()).unwrap())
        });
        (any::<u64>(), prop::collection::vec(step, 0..5)).prop_map(|(needs, steps)| Export { needs, steps })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(export in exports()) {
            prop_assert_eq!(decode(&encode(&export)), Ok(export));
        }

        #[test]
        fn whatever_is_cut_off_or_changed_is_refused(export in exports(), cut: prop::sample::Index, bit in 0..8_u32) {
            let bytes = encode(&export);
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
            plausible.extend(VERSION.to_le_bytes());
            plausible.extend(rest);
            prop_assert!(decode(&plausible).is_err());
        }
    }

    /// With the checksum made right again, so that what is meant is what refuses it.
    fn with(numbers: &[u32]) -> Result<Export, PlanError> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(hash(&bytes).to_le_bytes());
        decode(&bytes)
    }

    #[test]
    fn each_refusal_says_what_is_wrong() {
        assert_eq!(decode(b"something else"), Err(PlanError::NotAPlan));
        assert_eq!(decode(b""), Err(PlanError::CutOff { len: 0, wanted: HEAD + TAIL }));
        assert_eq!(with(&[1, 0]), Err(PlanError::Version { found: 1, known: 2 }));
        assert!(matches!(with(&[2, 65]), Err(PlanError::Step { step: 64, .. })));
        assert!(matches!(with(&[2, 1, 7, 0, 0]), Err(PlanError::Step { step: 0, .. })));
        assert!(matches!(with(&[2, 1, 7, 0, u32::MAX]), Err(PlanError::Step { step: 0, .. })));
        assert!(matches!(with(&[2, 1, 7, 0, 131_072, 5, 1]), Err(PlanError::CutOff { .. })));
        assert!(matches!(with(&[2, 1, 7, 0, 1, 0, 1]), Err(PlanError::Step { step: 0, .. })));
        assert!(matches!(with(&[2, 2, 7, 0, 1, 5, 1, 1, 5, 2]), Err(PlanError::Step { step: 1, .. })));
        assert_eq!(with(&[2, 1, 7, 0, 1, 5, 1]).map(|export| export.steps.len()), Ok(1));
        assert_eq!(with(&[2, 0, 7, 1]), Ok(Export { needs: 7 + (1 << 32), steps: Vec::new() }));
    }
}

//! Numbers, byte by byte of their places: the exponents of weights are alike, their digits are noise.
//!
//! What is made of a piece: "stl" and a version, the width of a number (4 bytes), the piece's size (8 bytes), the length of each plane (8
//! bytes each, the highest bit set where the plane is stored as it is), the planes, and the bytes that were no whole number. All little-endian.

use parking_lot::Mutex;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

use super::{Codec, CodecError};
use crate::tier::TierError;

const MAGIC: [u8; 4] = *b"stl\x01";
const HEADER: usize = 16;
/// Bytes of a plane's length, and the bit that says that the plane is stored as it is.
const WORD: usize = 8;
const AS_IT_IS: u64 = 1 << 63;
/// The fastest level that codes single bytes by how often they occur, which is most of what there is to gain.
const LEVEL: i32 = 1;
/// The binary logarithm of how many places are remembered when repetitions are looked for in planes of numbers. Bytes of exponents repeat by chance,
/// and it costs more to say so than to code them one by one: fewer are found this way, in half the time.
const PLACES_LOG2: u32 = 8;
/// A plane is tried on so many bytes of its middle, and compressed where they lose at least one in so many.
const SAMPLE: usize = 16 << 10;
const SAMPLE_GAIN: usize = 32;

/// Numbers of 1, 2 or 4 bytes without loss. Each is turned by one bit first, so that its exponent fills the upper byte, whatever its sign: then each
/// place's bytes are compressed on their own with zstd, or stored as they are where that gains nothing. A piece grows by at most 48 bytes.
#[derive(Debug)]
pub struct Lossless {
    width: usize,
    name: &'static str,
    /// What is not in use just now: as many as there were encoders and decoders at once.
    benches: Mutex<Vec<Bench>>,
}

/// What one encoding or decoding works with.
struct Bench {
    compressor: Compressor<'static>,
    decompressor: Decompressor<'static>,
    planes: Vec<u8>,
    trial: Vec<u8>,
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").field("planes", &self.planes.len()).finish_non_exhaustive()
    }
}

impl Lossless {
    /// For numbers of 1, 2 or 4 bytes; any other width is taken for 1.
    pub fn new(width: usize) -> Lossless {
        let (width, name) = match width {
            2 => (2, "lossless16"),
            4 => (4, "lossless32"),
            _ => (1, "lossless8"),
        };
        Lossless { width, name, benches: Mutex::new(Vec::new()) }
    }

    fn with_bench<T>(&self, work: impl FnOnce(&mut Bench) -> Result<T, CodecError>) -> Result<T, CodecError> {
        let bench = self.benches.lock().pop();
        let mut bench = match bench {
            Some(bench) => bench,
            None => Bench {
                compressor: self.compressor().map_err(|error| self.malformed(error))?,
                decompressor: Decompressor::new().map_err(|error| self.malformed(error))?,
                planes: Vec::new(),
                trial: vec![0; SAMPLE],
            },
        };
        let result = work(&mut bench);
        self.benches.lock().push(bench);
        result
    }

    fn compressor(&self) -> std::io::Result<Compressor<'static>> {
        let mut compressor = Compressor::new(LEVEL)?;
        if self.width > 1 {
            compressor.set_parameter(CParameter::HashLog(PLACES_LOG2))?;
        }
        Ok(compressor)
    }

    #[cold]
    fn malformed(&self, what: impl ToString) -> CodecError {
        CodecError::Malformed { codec: self.name.to_owned(), what: what.to_string() }
    }

    fn head(&self) -> usize {
        HEADER + self.width * WORD
    }
}

impl Codec for Lossless {
    fn name(&self) -> &str {
        self.name
    }

    fn bound(&self, size: usize) -> usize {
        self.head() + size
    }

    fn encode(&self, src: &[u8], dst: &mut [u8]) -> Result<usize, TierError> {
        let (needed, room) = (self.bound(src.len()), dst.len());
        if room < needed {
            return Err(CodecError::NoRoom { codec: self.name.to_owned(), needed, room }.into());
        }
        dst[..4].copy_from_slice(&MAGIC);
        dst[4..8].copy_from_slice(&(self.width as u32).to_le_bytes());
        dst[8..HEADER].copy_from_slice(&(src.len() as u64).to_le_bytes());
        let plane = src.len() / self.width;
        let (numbers, rest) = src.split_at(plane * self.width);
        let mut at = self.head();
        self.with_bench(|bench| {
            let planes: &[u8] = if self.width == 1 {
                numbers
            } else {
                bench.planes.resize(numbers.len(), 0);
                split(numbers, &mut bench.planes, self.width);
                &bench.planes
            };
            for (number, bytes) in planes.chunks(plane.max(1)).enumerate() {
                // No more room than the plane as it is takes: what is longer fails.
                let place = &mut dst[at..at + plane];
                let packed = if pays(bytes, &mut bench.compressor, &mut bench.trial) {
                    bench.compressor.compress_to_buffer(bytes, place).ok()
                } else {
                    None
                };
                let word = match packed {
                    Some(length) => length as u64,
                    None => {
                        place.copy_from_slice(bytes);
                        AS_IT_IS | plane as u64
                    }
                };
                dst[HEADER + number * WORD..][..WORD].copy_from_slice(&word.to_le_bytes());
                at += (word & !AS_IT_IS) as usize;
            }
            if plane == 0 {
                dst[HEADER..at].fill(0);
            }
            Ok(())
        })?;
        dst[at..at + rest.len()].copy_from_slice(rest);
        Ok(at + rest.len())
    }

    fn decode(&self, src: &[u8], dst: &mut [u8]) -> Result<(), TierError> {
        let size = dst.len();
        let Some((head, mut body)) = src.split_at_checked(self.head()) else {
            return Err(self.malformed("it is too short").into());
        };
        if head[..4] != MAGIC || head[4..8] != (self.width as u32).to_le_bytes() {
            return Err(self.malformed("it does not begin as it should").into());
        }
        if head[8..HEADER] != (size as u64).to_le_bytes() {
            return Err(self.malformed(format_args!("it is not of {size} bytes")).into());
        }
        let plane = size / self.width;
        let (numbers, rest) = dst.split_at_mut(plane * self.width);
        self.with_bench(|bench| {
            let planes: &mut [u8] = if self.width == 1 {
                &mut *numbers
            } else {
                bench.planes.resize(numbers.len(), 0);
                &mut bench.planes
            };
            let words = head[HEADER..].chunks_exact(WORD);
            let mut bytes = planes.chunks_mut(plane.max(1));
            for word in words {
                let word = u64::from_le_bytes(word.try_into().expect("chunks of eight"));
                let length = usize::try_from(word & !AS_IT_IS).unwrap_or(usize::MAX);
                let Some((packed, others)) = body.split_at_checked(length) else {
                    return Err(self.malformed("a plane is cut off"));
                };
                body = others;
                let bytes = bytes.next().unwrap_or_default();
                if word & AS_IT_IS != 0 {
                    if length != plane {
                        return Err(self.malformed("a plane has another size"));
                    }
                    bytes.copy_from_slice(packed);
                } else if plane > 0 {
                    let unpacked = bench.decompressor.decompress_to_buffer(packed, bytes);
                    if unpacked.map_err(|error| self.malformed(error))? != plane {
                        return Err(self.malformed("a plane is too short"));
                    }
                } else if length > 0 {
                    return Err(self.malformed("a plane has another size"));
                }
            }
            if body.len() != rest.len() {
                return Err(self.malformed("its end has another size"));
            }
            if self.width > 1 {
                join(&bench.planes, numbers, self.width);
            }
            Ok(())
        })?;
        rest.copy_from_slice(body);
        Ok(())
    }

    fn lossless(&self) -> bool {
        true
    }
}

/// Whether compressing a plane is likely to pay, by a sample of it.
fn pays(plane: &[u8], compressor: &mut Compressor<'_>, trial: &mut [u8]) -> bool {
    if plane.len() <= SAMPLE {
        return !plane.is_empty();
    }
    let sample = &plane[(plane.len() - SAMPLE) / 2..][..SAMPLE];
    let room = SAMPLE - SAMPLE / SAMPLE_GAIN;
    compressor.compress_to_buffer(sample, &mut trial[..room]).is_ok()
}

/// Numbers into planes, the upper byte's first.
fn split(numbers: &[u8], planes: &mut [u8], width: usize) {
    let plane = numbers.len() / width;
    if width == 2 {
        let (upper, lower) = planes.split_at_mut(plane);
        for ((number, upper), lower) in numbers.as_chunks().0.iter().zip(upper).zip(lower) {
            let turned = u16::from_le_bytes(*number).rotate_left(1);
            (*upper, *lower) = ((turned >> 8) as u8, turned as u8);
        }
        return;
    }
    for (at, place) in planes.chunks_mut(plane.max(1)).enumerate() {
        for (number, byte) in numbers.as_chunks().0.iter().zip(place) {
            *byte = (u32::from_le_bytes(*number).rotate_left(1) >> (24 - 8 * at)) as u8;
        }
    }
}

/// Planes into numbers.
fn join(planes: &[u8], numbers: &mut [u8], width: usize) {
    let plane = numbers.len() / width;
    if width == 2 {
        let (upper, lower) = planes.split_at(plane);
        for ((number, upper), lower) in numbers.as_chunks_mut().0.iter_mut().zip(upper).zip(lower) {
            *number = (u16::from(*upper) << 8 | u16::from(*lower)).rotate_right(1).to_le_bytes();
        }
        return;
    }
    let mut places = planes.chunks(plane.max(1));
    let mut next = || places.next().unwrap_or_default();
    let (first, second, third, fourth) = (next(), next(), next(), next());
    let bytes = first.iter().zip(second).zip(third).zip(fourth);
    for (number, (((a, b), c), d)) in numbers.as_chunks_mut().0.iter_mut().zip(bytes) {
        *number = u32::from_be_bytes([*a, *b, *c, *d]).rotate_right(1).to_le_bytes();
    }
}

//! What codecs gain on weights, and how fast they are.

use std::time::{Duration, Instant};

use stratalloc::tier::codec::{self, Codec};

use crate::Failed;

/// A codec in one direction.
#[derive(Debug, Clone)]
pub struct Row {
    /// `codec/NAME/KIND/encode`: of which kind of numbers.
    pub name: String,
    /// Bytes of numbers that one thread encodes or decodes in a second.
    pub bytes_per_s: f64,
    /// Bytes of numbers for each byte that is stored.
    pub ratio: f64,
}

/// Bytes that are encoded at a time, as the transfer engine does.
const PIECE: usize = 2 << 20;
/// How long each direction is timed.
const AT_LEAST: Duration = Duration::from_millis(150);

/// Every codec of this build but `none`, on one thread, over weights that are normally distributed with a standard deviation of 0.02: the
/// same ones each time.
pub fn rows() -> Result<Vec<Row>, Failed> {
    let mut rows = Vec::new();
    let names = [
        "lossless16",
        "lossless16",
        "lossless32",
        "int8-bf16",
        "int8-f16",
        "int8-f32",
        "int4-bf16",
        "int4-f16",
        "int4-f32",
    ];
    for (at, name) in names.into_iter().enumerate() {
        let kind = match name {
            "lossless16" => ["bf16", "f16"][at.min(1)],
            _ if name.contains("32") => "f32",
            _ => name.rsplit('-').next().unwrap_or("bf16"),
        };
        let codec = match codec::by_name(name) {
            Ok(Some(codec)) => codec,
            Ok(None) | Err(codec::CodecError::NotBuilt { .. }) => continue,
            Err(error) => return Err(Failed::from(error.to_string())),
        };
        rows.extend(both_ways(&*codec, kind).map_err(|error| Failed::from(error.to_string()))?);
    }
    Ok(rows)
}

fn both_ways(codec: &dyn Codec, kind: &str) -> Result<[Row; 2], stratalloc::tier::TierError> {
    let weights = weights(kind);
    let mut encoded = vec![0; codec.bound(PIECE)];
    let mut back = vec![0; PIECE];
    let length = codec.encode(&weights, &mut encoded)?;
    // The first of each finds cold memory.
    codec.decode(&encoded[..length], &mut back)?;
    let encode = timed(|| codec.encode(&weights, &mut encoded).map(|_| ()))?;
    let decode = timed(|| codec.decode(&encoded[..length], &mut back))?;
    let (name, ratio) = (codec.name(), PIECE as f64 / length as f64);
    let row = |way, bytes_per_s| Row { name: format!("codec/{name}/{kind}/{way}"), bytes_per_s, ratio };
    Ok([row("encode", encode), row("decode", decode)])
}

/// Bytes a second, the fastest of the rounds.
fn timed<E>(mut work: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let (begin, mut best) = (Instant::now(), Duration::MAX);
    while begin.elapsed() < AT_LEAST {
        let round = Instant::now();
        work()?;
        best = best.min(round.elapsed());
    }
    Ok(PIECE as f64 / best.as_secs_f64())
}

/// A piece of weights of that kind.
fn weights(kind: &str) -> Vec<u8> {
    let mut state = 0x5eed_u64;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ x >> 31) >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut weight = || {
        let (a, b) = (1.0 - uniform(), uniform());
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos() * 0.02) as f32
    };
    let mut bytes = Vec::with_capacity(PIECE);
    while bytes.len() < PIECE {
        let bits = weight().to_bits();
        match kind {
            "f32" => bytes.extend(bits.to_le_bytes()),
            "bf16" => bytes.extend(((bits + 0x8000) >> 16).to_le_bytes()[..2].iter()),
            // Below 2^-14 the least digits are lost, which few weights are.
            _ => {
                let size = (bits & 0x7fff_ffff) + 0x1000;
                let half = if size >= 0x3880_0000 { (size - (112 << 23)) >> 13 } else { 0 };
                bytes.extend((bits >> 31 << 15 | half).to_le_bytes()[..2].iter());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_codec_has_two_rows() {
        let rows = super::rows().unwrap();
        assert!(rows.len() >= 12 && rows.len() % 2 == 0);
        for row in &rows {
            let bounds = if row.name.contains("lossless") { 1.1..1.7 } else { 1.8..8.0 };
            assert!(row.bytes_per_s > 1e6 && bounds.contains(&row.ratio), "{row:?}");
        }
    }
}

//! What codecs gain on weights, and how fast they are.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;
use stratalloc::tier::TierError;
use stratalloc::tier::codec::{self, Codec};

use crate::table::Table;
use crate::{Failed, Finish};

/// Options of `stratalloc tiers codecs`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Files of plain numbers; without any, weights are made, normally distributed with a standard deviation of 0.02
    pub files: Vec<PathBuf>,
    /// What numbers the files are of
    #[arg(long, default_value = "bf16")]
    pub kind: Kind,
    /// Print JSON, one line a figure
    #[arg(long)]
    pub json: bool,
}

/// Kinds of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// bfloat16
    Bf16,
    /// Half precision
    F16,
    /// Single precision
    F32,
}

impl Kind {
    /// The codecs for it.
    fn codecs(self) -> [&'static str; 3] {
        match self {
            Kind::Bf16 => ["lossless16", "int8-bf16", "int4-bf16"],
            Kind::F16 => ["lossless16", "int8-f16", "int4-f16"],
            Kind::F32 => ["lossless32", "int8-f32", "int4-f32"],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Bf16 => "bf16",
            Kind::F16 => "f16",
            Kind::F32 => "f32",
        }
    }
}

/// A codec in one direction.
#[derive(Debug, Clone, Serialize)]
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
/// Bytes of weights that are made.
const MADE: usize = 2 * PIECE;
/// How long each direction is timed.
const AT_LEAST: Duration = Duration::from_millis(150);

/// Prints what every codec makes of files, or of weights.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Finish, Failed> {
    let mut rows = Vec::new();
    for path in &options.files {
        let bytes = std::fs::read(path).map_err(|error| Failed::from(format!("{}: {error}", path.display())))?;
        if bytes.is_empty() {
            return Err(Failed::from(format!("{}: it is empty", path.display())));
        }
        rows.extend(rows_of(options.kind, &bytes)?);
    }
    if options.files.is_empty() {
        rows = self::rows()?;
    }
    if options.json {
        for row in &rows {
            serde_json::to_writer(&mut *out, row)?;
            writeln!(out)?;
        }
        return Ok(Finish::Good);
    }
    let mut table = Table::new(&["codec", "MB/s", "ratio"]);
    for row in &rows {
        table.row(vec![row.name.clone(), format!("{:.0}", row.bytes_per_s / 1e6), format!("{:.3}", row.ratio)]);
    }
    writeln!(out, "{table}")?;
    Ok(Finish::Good)
}

/// Every codec of this build but `none`, on one thread, over weights that are normally distributed with a standard deviation of 0.02: the
/// same ones each time.
pub fn rows() -> Result<Vec<Row>, Failed> {
    let of = |kind| rows_of(kind, &weights(kind));
    Ok([of(Kind::Bf16)?, of(Kind::F16)?, of(Kind::F32)?].concat())
}

fn rows_of(kind: Kind, bytes: &[u8]) -> Result<Vec<Row>, Failed> {
    let mut rows = Vec::new();
    for name in kind.codecs() {
        let codec = match codec::by_name(name) {
            Ok(Some(codec)) => codec,
            Ok(None) | Err(codec::CodecError::NotBuilt { .. }) => continue,
            Err(error) => return Err(Failed::from(error.to_string())),
        };
        rows.extend(both_ways(&*codec, kind, bytes).map_err(|error| Failed::from(error.to_string()))?);
    }
    Ok(rows)
}

fn both_ways(codec: &dyn Codec, kind: Kind, bytes: &[u8]) -> Result<[Row; 2], TierError> {
    let mut encoded: Vec<Vec<u8>> = bytes.chunks(PIECE).map(|piece| vec![0; codec.bound(piece.len())]).collect();
    let mut lengths = vec![0; encoded.len()];
    let mut back = vec![0; bytes.len()];
    let encode = timed(bytes.len(), || {
        let places = encoded.iter_mut().zip(&mut lengths);
        bytes.chunks(PIECE).zip(places).try_for_each(|(piece, (place, length))| {
            *length = codec.encode(piece, place)?;
            Ok(())
        })
    })?;
    let decode = timed(bytes.len(), || {
        let pieces = encoded.iter().zip(&lengths);
        back.chunks_mut(PIECE)
            .zip(pieces)
            .try_for_each(|(piece, (place, length))| codec.decode(&place[..*length], piece))
    })?;
    let (name, kind, ratio) = (codec.name(), kind.name(), bytes.len() as f64 / lengths.iter().sum::<usize>() as f64);
    let row = |way, bytes_per_s| Row { name: format!("codec/{name}/{kind}/{way}"), bytes_per_s, ratio };
    Ok([row("encode", encode), row("decode", decode)])
}

/// Bytes a second, the fastest of the rounds: the first finds cold memory.
fn timed(bytes: usize, mut work: impl FnMut() -> Result<(), TierError>) -> Result<f64, TierError> {
    work()?;
    let (begin, mut best) = (Instant::now(), Duration::MAX);
    while best == Duration::MAX || begin.elapsed() < AT_LEAST {
        let round = Instant::now();
        work()?;
        best = best.min(round.elapsed());
    }
    Ok(bytes as f64 / best.as_secs_f64().max(1e-9))
}

/// Weights of that kind.
fn weights(kind: Kind) -> Vec<u8> {
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
    let mut bytes = Vec::with_capacity(MADE);
    while bytes.len() < MADE {
        let bits = weight().to_bits();
        match kind {
            Kind::F32 => bytes.extend(bits.to_le_bytes()),
            Kind::Bf16 => bytes.extend(((bits + 0x8000) >> 16).to_le_bytes()[..2].iter()),
            // Below 2^-14 the least digits are lost, which few weights are.
            Kind::F16 => {
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
        assert!(rows.len() == 18);
        for row in &rows {
            let bounds = if row.name.contains("lossless") { 1.1..1.7 } else { 1.8..8.0 };
            assert!(row.bytes_per_s > 1e6 && bounds.contains(&row.ratio), "{row:?}");
        }
    }
}

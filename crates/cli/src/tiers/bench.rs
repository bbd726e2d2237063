//! `stratalloc tiers bench`: what moving bytes beyond the device costs on this machine.
//!
//! Every row stands beside the plain thing that does the same work where there is one: a copy by the processor, or another program. Both take
//! turns, so that whatever else the machine does falls on both; medians are over the rounds. The bias: the copies of the software device
//! are the processor's, so what is compared there is what the engine adds to copying: cutting into pieces, checksums, events. `--device cuda`
//! has the copy engines of a GPU.

use std::io::Write;
use std::path::PathBuf;

use indicatif::ProgressBar;
use serde::Serialize;
use stratalloc::units::ByteSize;

use super::{codecs, device, nvme};
use crate::table::{Table, digits};
use crate::target::Target;
use crate::{Failed, Finish};

/// What `tiers bench` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Bytes that a row moves at a time
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = size)]
    pub size: ByteSize,

    /// Turns that a row and what stands beside it get
    #[arg(long, value_name = "N", default_value = "9", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,

    /// The device of the rows `device`: `software`, whose copies are made by this machine's processor, or `cuda:0`
    #[arg(long, value_name = "DEVICE", default_value = "software")]
    pub device: Target,

    /// Threads that check and store, in the rows `device` [default: half of the processors, 1 to 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: Option<u32>,

    /// Folder on the disk that the rows `nvme` write to and read from; by default that for temporary files
    #[arg(long, value_name = "PATH")]
    pub folder: Option<PathBuf>,

    /// Only these rows: `device`, `nvme`, `codec`
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    pub only: Vec<String>,

    /// Print JSON: an array with one object a row
    #[arg(long)]
    pub json: bool,
}

fn size(text: &str) -> Result<ByteSize, String> {
    let size = text.parse::<ByteSize>().map_err(|error| error.to_string())?;
    if (4096..=64 << 30).contains(&size.0) { Ok(size) } else { Err("write a size from 4 KiB to 64 GiB".to_owned()) }
}

/// One row.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What was done, its part first: `device/out/256 MiB`.
    pub name: String,
    /// The median round.
    pub bytes_per_s: f64,
    /// As a part of the speed of what stands beside it; for codecs, how many times smaller the bytes become.
    pub ratio: Option<f64>,
    /// What the ratio is to, or why there is none.
    pub to: String,
}

/// Measures the rows of a part.
type Rows = fn(&Options) -> Result<Vec<Figure>, Failed>;

/// The parts, in the order of the table. Each is the beginning of its rows' names.
const PARTS: [(&str, Rows); 3] = [("device", device::rows), ("nvme", nvme::rows), ("codec", codec_rows)];

fn codec_rows(_: &Options) -> Result<Vec<Figure>, Failed> {
    let figure = |row: codecs::Row| {
        let codecs::Row { name, bytes_per_s, ratio } = row;
        Figure { name, bytes_per_s, ratio: Some(ratio), to: "the bytes as they are stored".to_owned() }
    };
    Ok(codecs::rows()?.into_iter().map(figure).collect())
}

/// Measures all rows and prints them.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Finish, Failed> {
    if let Some(unknown) = options.only.iter().find(|only| PARTS.iter().all(|(part, _)| part != only)) {
        let known: Vec<&str> = PARTS.iter().map(|(part, _)| *part).collect();
        return Err(Failed::from(format!("there are no rows of {unknown:?}: there are {}", known.join(", "))));
    }
    let wanted = |part: &str| options.only.is_empty() || options.only.iter().any(|only| only == part);
    let parts: Vec<_> = PARTS.iter().filter(|(part, _)| wanted(part)).collect();
    let progress = ProgressBar::new(parts.len() as u64);
    let mut figures = Vec::new();
    for (_, rows) in parts {
        progress.tick();
        figures.extend(rows(options)?);
        progress.inc(1);
    }
    progress.finish_and_clear();
    if options.json {
        serde_json::to_writer_pretty(&mut *out, &figures)?;
        writeln!(out)?;
    } else {
        for_people(&figures, options.device, out)?;
    }
    Ok(Finish::Good)
}

fn for_people(figures: &[Figure], device: Target, out: &mut impl Write) -> std::io::Result<()> {
    let mut table = Table::new(&["name", "bytes_per_s", "ratio", "to"]);
    for figure in figures {
        table.row(vec![
            figure.name.clone(),
            format!("{:.0}", figure.bytes_per_s),
            figure.ratio.map(digits).unwrap_or_default(),
            figure.to.clone(),
        ]);
    }
    write!(out, "{table}")?;
    writeln!(out, "\nLook at: ratio, which is of this run; 1 is as fast as what stands beside it.")?;
    if device == Target::Software {
        writeln!(out, "The speed of the first rows is that of this machine's memory, since the device is software.")?;
    }
    Ok(())
}

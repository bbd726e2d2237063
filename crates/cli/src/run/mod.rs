//! `stratalloc run`: starts a program with the preload library in front of its CUDA driver, or says why that cannot work.

mod elf;
mod program;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use stratalloc::config::{Config, ENV};

use self::program::Program;
use crate::{Failed, Finish};

/// The library's file name.
const LIBRARY: &str = "libstratalloc_preload.so";
/// Names the library, where it is somewhere else.
const LIBRARY_VARIABLE: &str = "STRATALLOC_PRELOAD_LIB";
const TRACE_VARIABLE: &str = "STRATALLOC_PRELOAD_TRACE";
const REPORT_VARIABLE: &str = "STRATALLOC_PRELOAD_REPORT";
const OWN_VARIABLE: &str = "STRATALLOC_PRELOAD_OWN";

/// What `run` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The most device memory that the program may hold: a part of each device, such as 0.8, or a size, such as 20GiB
    #[arg(long)]
    pub limit: Option<String>,
    /// Record the program's allocations in this file, for `stratalloc replay`; %p stands for the process
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Settings as key:value,key:value, in place of STRATALLOC_CONF
    #[arg(long, value_name = "SETTINGS")]
    pub conf: Option<String>,
    /// Write what was held and called to this file at exit; - is stderr, %p stands for the process
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Libraries, by the beginnings of their file names, whose allocations are to be exportable; * for all
    #[arg(long, value_name = "LIBRARIES")]
    pub own: Option<String>,
    /// Print the environment that the program would get, and do not start it
    #[arg(long)]
    pub print: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    pub program: Vec<OsString>,
}

/// Starts the program in this process's place. Returns only where it does not start.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Finish, Failed> {
    let library = find_library(std::env::var_os(LIBRARY_VARIABLE).as_deref())?;
    let environment = environment(options, &library)?;
    let (name, arguments) = options.program.split_first().ok_or_else(|| Failed::from("no program".to_string()))?;
    let program = Program::find(name)?;
    program.check(&library)?;
    if options.print {
        for (key, value) in &environment {
            writeln!(out, "{key}={}", value.to_string_lossy())?;
        }
        return Ok(Finish::Good);
    }
    out.flush()?;
    let mut command = Command::new(program.path());
    command.arg0(name).args(arguments).envs(environment);
    let error = command.exec();
    Err(Failed::from(format!("{}: {error}", program.path().display())))
}

/// The variables that the program is to have.
fn environment(options: &Options, library: &Path) -> Result<Vec<(&'static str, OsString)>, Failed> {
    let mut variables = Vec::new();
    let before = std::env::var_os("LD_PRELOAD").filter(|value| !value.is_empty());
    variables.push(("LD_PRELOAD", preload_list(library, before.as_deref())?));
    let given = options.conf.clone().or_else(|| std::env::var(ENV).ok()).unwrap_or_default();
    let settings = match &options.limit {
        Some(limit) if given.trim().is_empty() => format!("limit:{limit}"),
        // The last one holds.
        Some(limit) => format!("{},limit:{limit}", given.trim_end_matches(',')),
        None => given,
    };
    // Here, where somebody can be told, and not in the program.
    Config::parse(&settings)?;
    if !settings.is_empty() {
        variables.push((ENV, settings.into()));
    }
    if let Some(trace) = &options.trace {
        variables.push((TRACE_VARIABLE, absolute(trace)?));
    }
    if let Some(report) = &options.report {
        let path = if report == Path::new("-") { "-".into() } else { absolute(report)? };
        variables.push((REPORT_VARIABLE, path));
    }
    if let Some(own) = &options.own {
        variables.push((OWN_VARIABLE, own.into()));
    }
    Ok(variables)
}

/// The program may change its directory before it writes.
fn absolute(path: &Path) -> Result<OsString, Failed> {
    let absolute = std::path::absolute(path).map_err(|error| Failed::from(format!("{}: {error}", path.display())))?;
    Ok(absolute.into_os_string())
}

/// The value of `LD_PRELOAD`: the library first, once.
fn preload_list(library: &Path, before: Option<&OsStr>) -> Result<OsString, Failed> {
    let text = library.to_str().filter(|text| !text.contains([' ', ':', '\n', '\t']));
    let text = text.ok_or_else(|| {
        let path = library.display();
        Failed::from(format!("{path}: LD_PRELOAD cannot hold a path with spaces or colons; put the library elsewhere"))
    })?;
    let before = before.map(|before| before.to_string_lossy().into_owned()).unwrap_or_default();
    let others = before.split([' ', ':']).filter(|other| !other.is_empty() && *other != text);
    Ok([text].into_iter().chain(others).collect::<Vec<_>>().join(":").into())
}

/// The preload library: the one that the variable names, or the one that was installed with this command.
fn find_library(named: Option<&OsStr>) -> Result<PathBuf, Failed> {
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        let path = PathBuf::from(named);
        if !path.is_file() {
            return Err(Failed::from(format!("{LIBRARY_VARIABLE}: there is no file {}", path.display())));
        }
        return Ok(std::path::absolute(&path).unwrap_or(path));
    }
    let executable = std::env::current_exe().and_then(|path| path.canonicalize());
    let executable = executable.map_err(|error| Failed::from(format!("where this command is: {error}")))?;
    let folder = executable.parent().unwrap_or(Path::new("/"));
    let places = ["", "../lib", "../lib/stratalloc"].map(|place| folder.join(place).join(LIBRARY));
    let found = places.iter().find(|path| path.is_file()).and_then(|path| path.canonicalize().ok());
    found.ok_or_else(|| {
        let looked = places.map(|path| path.display().to_string()).join(", ");
        Failed::from(format!("{LIBRARY} was not found; looked for {looked}; {LIBRARY_VARIABLE} can name it"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_comes_first_and_once() {
        let list = |before: Option<&str>| preload_list(Path::new("/a/x.so"), before.map(OsStr::new)).unwrap();
        assert_eq!(list(None), "/a/x.so");
        assert_eq!(list(Some("/b.so /a/x.so:/c.so")), "/a/x.so:/b.so:/c.so");
        for bad in ["/with space/x.so", "/with:colon/x.so"] {
            let error = preload_list(Path::new(bad), None).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
    }
}

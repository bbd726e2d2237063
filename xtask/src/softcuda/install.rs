//! Files of the layout: written whole or not at all, and left alone where nothing changed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes `bytes` to `to`, unless that is what is there. A process that has the old file open keeps it.
pub(super) fn write(to: &Path, bytes: &[u8]) -> Result<(), String> {
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let partial = partial_name(to);
    let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, to));
    written.map_err(|error| format!("cannot write {}: {error}", to.display()))
}

/// Copies a library that cargo has built.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let bytes = fs::read(from).map_err(|error| format!("cannot read {}: {error}", from.display()))?;
    write(to, &bytes)
}

/// Makes `link` a symbolic link to its neighbour `name`.
pub(super) fn link(name: &str, link: &Path) -> Result<(), String> {
    if fs::read_link(link).is_ok_and(|old| old == Path::new(name)) {
        return Ok(());
    }
    let partial = partial_name(link);
    let _ = fs::remove_file(&partial);
    let made = symlink(name, &partial).and_then(|()| fs::rename(&partial, link));
    made.map_err(|error| format!("cannot link {}: {error}", link.display()))
}

/// Links the shared library `to`, with the soname of its file name.
///
/// `stamp` says all that the result depends on: where the last link had the same, nothing is done.
pub(super) fn shared_library<S: AsRef<OsStr>>(to: &Path, stamp: &str, arguments: &[S]) -> Result<(), String> {
    let name = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stamp_file = to.with_file_name(format!(".{name}.stamp"));
    if to.exists() && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        return Ok(());
    }
    let partial = partial_name(to);
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let output = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-O1", "-Wl,-z,nodelete", "-Wl,-z,relro", "-o"])
        .arg(&partial)
        .arg(format!("-Wl,-soname,{name}"))
        .args(arguments)
        .output()
        .map_err(|error| format!("cannot run the C compiler '{}': {error}", Path::new(&compiler).display()))?;
    if !output.status.success() {
        return Err(format!("cannot link {name}:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    fs::rename(&partial, to).map_err(|error| format!("cannot write {}: {error}", to.display()))?;
    write(&stamp_file, stamp.as_bytes())
}

/// A name beside `to` for what is not finished, of this process's own.
pub(super) fn partial_name(to: &Path) -> PathBuf {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    to.with_file_name(format!(".{name}.{}", std::process::id()))
}

/// A short number for what a file holds now: its size and when it was written.
pub(super) fn fingerprint(path: &Path) -> Result<String, String> {
    let read = fs::metadata(path).and_then(|meta| Ok((meta.len(), meta.modified()?)));
    let (len, modified) = read.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let since = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{} {len} {}", path.display(), since.as_nanos()))
}

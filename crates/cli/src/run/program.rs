//! The program to start: where it is, and whether the dynamic linker will let a library be put in front of it.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::elf::Elf;
use crate::Failed;

/// So many interpreters may stand in for one another, as for the kernel.
const INTERPRETERS_MAX: usize = 4;

/// A program that was found.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
}

fn fails<T>(message: String) -> Result<T, Failed> {
    Err(Failed::from(message))
}

impl Program {
    /// Finds a program as a shell would: by its path if it has a slash, in `PATH` otherwise.
    pub(super) fn find(name: &OsStr) -> Result<Program, Failed> {
        if name.as_bytes().contains(&b'/') {
            let path = PathBuf::from(name);
            return match fs::metadata(&path) {
                Err(error) => fails(format!("{}: {error}", path.display())),
                Ok(found) if !is_executable(&found) => fails(format!("{}: not an executable file", path.display())),
                Ok(_) => Ok(Program { path }),
            };
        }
        let folders = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let paths = std::env::split_paths(&folders).map(|folder| folder.join(name));
        let found = paths.into_iter().find(|path| fs::metadata(path).is_ok_and(|found| is_executable(&found)));
        match found {
            Some(path) => Ok(Program { path }),
            None => fails(format!("{}: not found in PATH", name.to_string_lossy())),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses what `library` would not be loaded into.
    pub(super) fn check(&self, library: &Path) -> Result<(), Failed> {
        let ours = Elf::read(library).map_err(|reason| Failed::from(format!("{}: {reason}", library.display())))?;
        let binary = self.binary()?;
        let path = binary.display();
        let not_hooked = "and cannot be hooked; it would run without stratalloc";
        let program = match Elf::read(&binary) {
            Ok(program) => program,
            Err(reason) => return fails(format!("{path}: {reason}, {not_hooked}")),
        };
        if program.class != ours.class || program.machine != ours.machine {
            return fails(format!("{path} is for another machine than the preload library, {not_hooked}"));
        }
        if !program.is_dynamic {
            return fails(format!("{path} is linked statically: no dynamic linker loads it, {not_hooked}"));
        }
        if let Some(privilege) = privilege_of(&binary) {
            return fails(format!("{path} {privilege}: the dynamic linker ignores LD_PRELOAD for it, {not_hooked}"));
        }
        Ok(())
    }

    /// The file that the kernel will load: for a script, its interpreter, and for `env`, what that starts.
    fn binary(&self) -> Result<PathBuf, Failed> {
        let mut path = self.path.clone();
        for _ in 0..INTERPRETERS_MAX {
            let Some((interpreter, argument)) = interpreter_of(&path)? else { return Ok(path) };
            let is_env = interpreter.file_name().is_some_and(|name| name == "env");
            path = match argument.filter(|_| is_env) {
                Some(name) => Program::find(&name)?.path,
                None => interpreter,
            };
        }
        fails(format!("{}: more than {INTERPRETERS_MAX} interpreters of interpreters", self.path.display()))
    }
}

fn is_executable(found: &fs::Metadata) -> bool {
    found.is_file() && found.permissions().mode() & 0o111 != 0
}

/// The interpreter of a script, with the first word of its argument that is no option.
fn interpreter_of(path: &Path) -> Result<Option<(PathBuf, Option<OsString>)>, Failed> {
    use std::io::Read;
    let unreadable = |error: std::io::Error| Failed::from(format!("{}: {error}", path.display()));
    let mut start = Vec::new();
    fs::File::open(path).map_err(unreadable)?.take(256).read_to_end(&mut start).map_err(unreadable)?;
    Ok(shebang(&start))
}

fn shebang(start: &[u8]) -> Option<(PathBuf, Option<OsString>)> {
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t' | b'\r')).filter(|word| !word.is_empty());
    let interpreter = PathBuf::from(OsStr::from_bytes(words.next()?));
    let argument = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'='));
    Some((interpreter, argument.map(|word| OsString::from_vec(word.to_vec()))))
}

/// What makes a program run with more rights than its caller, in words.
fn privilege_of(path: &Path) -> Option<&'static str> {
    let found = fs::metadata(path).ok()?;
    // SAFETY: these calls take nothing and cannot fail.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    if found.mode() & libc::S_ISUID != 0 && found.uid() != user {
        return Some("is set-user-ID");
    }
    if found.mode() & libc::S_ISGID != 0 && found.gid() != group {
        return Some("is set-group-ID");
    }
    let name = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: both names are strings; with no buffer, only the length is returned.
    let length = unsafe { libc::getxattr(name.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) };
    // The superuser gains nothing from a file's capabilities.
    (length > 0 && user != 0).then_some("has file capabilities")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_script_names_what_is_started() {
        let read = |text: &str| {
            let (path, argument) = shebang(text.as_bytes())?;
            Some((path.to_str()?.to_string(), argument.map(|word| word.to_str().unwrap().to_string())))
        };
        assert_eq!(read("#!/bin/sh\n"), Some(("/bin/sh".into(), None)));
        assert_eq!(read("#! /usr/bin/env -S A=1 python3 -u\nx"), Some(("/usr/bin/env".into(), Some("python3".into()))));
        assert_eq!(read("\x7fELF"), None);
        assert_eq!(read("#!\n"), None);
    }
}

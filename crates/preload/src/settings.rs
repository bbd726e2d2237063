//! What the environment says. Read once, at the first call; a bad value is one line on stderr, and the default holds.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;

use stratalloc::Config;
use stratalloc::config::StreamWait;

use crate::guard::say;

/// A file that the calls for memory are recorded in.
const TRACE: &str = "STRATALLOC_PRELOAD_TRACE";
/// Where the report at exit goes: a file, or `-` for stderr.
const REPORT: &str = "STRATALLOC_PRELOAD_REPORT";
/// Libraries whose allocations are not to be parts of larger ones.
const OWN: &str = "STRATALLOC_PRELOAD_OWN";

/// Libraries that export or map what they allocate.
const OWN_DEFAULT: &str = "libnccl,libnvshmem,libucp,libuct,libucs,libucm,libmpi,libfabric,libcufile,libgdrapi";

/// The settings.
pub(crate) struct Settings {
    /// The allocator's configuration.
    pub(crate) config: Config,
    /// Where calls are recorded, see [`with_process`].
    pub(crate) trace: Option<PathBuf>,
    /// Where the report goes, see [`with_process`].
    pub(crate) report: Option<OsString>,
    /// The beginnings of the file names of libraries that get allocations of their own; `*` stands for all callers.
    pub(crate) own: Vec<String>,
}

impl Settings {
    pub(crate) fn from_env() -> Settings {
        // Where this fails, `cuInit` has: the defaults serve nobody.
        let (mut config, wrong) = Config::from_env_or_default().unwrap_or_default();
        if let Some(error) = wrong {
            say(format_args!("{}: {error}; the defaults hold, without a limit", stratalloc::config::ENV));
        }
        if config.cross_stream_wait == StreamWait::Always {
            // What a stream was made to wait for would be handed to programs that use it on any other at once.
            say(format_args!("cross_stream_wait cannot be used with programs that call cuMemAlloc: it is off"));
        }
        config.cross_stream_wait = StreamWait::Never;
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let own = std::env::var(OWN).unwrap_or_else(|_| OWN_DEFAULT.to_string());
        Settings {
            config,
            trace: path(TRACE).map(PathBuf::from),
            report: path(REPORT),
            own: own.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_string).collect(),
        }
    }

    /// Whether a library with this path gets allocations of its own.
    pub(crate) fn is_own(&self, library: &str) -> bool {
        let name = library.rsplit('/').next().unwrap_or(library);
        self.own.iter().any(|own| own == "*" || name.starts_with(own.as_str()))
    }
}

/// Whether the settings cannot be understood and say `strict:true`. Then CUDA does not start, and one line says why.
pub(crate) fn are_refused() -> bool {
    static REFUSED: OnceLock<bool> = OnceLock::new();
    *REFUSED.get_or_init(|| {
        let refused = Config::from_env_or_default().err();
        if let Some(error) = &refused {
            say(format_args!("{}: {error}; with strict:true CUDA does not start", stratalloc::config::ENV));
        }
        refused.is_some()
    })
}

/// `%p` in a path stands for the process, so that the processes of one program do not write to one file. Asked when the file is made: a
/// process may fork after its settings were read.
pub(crate) fn with_process(path: OsString) -> OsString {
    match path.to_str() {
        Some(text) if text.contains("%p") => text.replace("%p", &std::process::id().to_string()).into(),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_may_name_the_process() {
        let own = std::process::id();
        assert_eq!(with_process("a-%p.trace".into()), OsString::from(format!("a-{own}.trace")));
        assert_eq!(with_process("a%.trace".into()), "a%.trace");
    }

    #[test]
    fn libraries_are_told_by_the_beginnings_of_their_names() {
        let settings = Settings {
            config: Config::default(),
            trace: None,
            report: None,
            own: OWN_DEFAULT.split(',').map(str::to_string).collect(),
        };
        for (library, own) in [
            ("/usr/lib/libnccl.so.2", true),
            ("libnvshmem_host.so.3", true),
            ("/opt/libnccl/libcudart.so.12", false),
            ("./program", false),
        ] {
            assert_eq!(settings.is_own(library), own, "{library}");
        }
        assert!(Settings { own: vec!["*".into()], ..settings }.is_own("./program"));
    }
}

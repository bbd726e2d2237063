//! The kernels' PTX and cubins: built from `kernels/` with pinned compilers, and compared byte by byte with what is committed.
//!
//! NVRTC writes the PTX, ptxas makes the cubins of it, which also proves the PTX sound for both architectures. Both tools come
//! as wheels of CUDA 12.0, some 43 MB: the oldest whose PTX (8.0) all drivers of CUDA 12 and later take.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use libloading::Library;

use crate::validate::target;

/// Other versions write other code.
const WHEELS: [&str; 2] = ["nvidia-cuda-nvrtc-cu12==12.0.140", "nvidia-cuda-nvcc-cu12==12.0.140"];
const NVRTC: &str = "nvidia/cuda_nvrtc/lib/libnvrtc.so.12";
const PTXAS: &str = "nvidia/cuda_nvcc/bin/ptxas";

const SOURCE: &str = "gpu.cu";
const PTX: &str = "stratalloc.ptx";
const CUBINS: [(&str, &str); 2] = [("sm_80", "stratalloc.sm_80.cubin"), ("sm_90", "stratalloc.sm_90.cubin")];
/// The lowest architecture served. The second option keeps tables of NVRTC's own headers out of the PTX.
const OPTIONS: [&str; 2] = ["--gpu-architecture=compute_80", "--std=c++03"];

/// Builds and compares, or rewrites what is committed. Whether all is well.
pub(crate) fn run(root: &Path, bless: bool) -> bool {
    match check(root, bless) {
        Ok(same) => same,
        Err(message) => {
            eprintln!("kernels: {message}");
            false
        }
    }
}

fn check(root: &Path, bless: bool) -> Result<bool, String> {
    let tools = tools(&target(root).join("kernels"))?;
    let built = tools.join("built");
    fs::create_dir_all(&built).map_err(|error| format!("cannot create {}: {error}", built.display()))?;
    let ptx = compile(&tools.join(NVRTC), &root.join("kernels"))?;
    write(&built.join(PTX), &ptx)?;
    for (architecture, name) in CUBINS {
        let mut assembler = Command::new(tools.join(PTXAS));
        assembler.arg(format!("-arch={architecture}")).arg(built.join(PTX)).arg("-o").arg(built.join(name));
        run_tool(&mut assembler)?;
    }
    let mut same = true;
    for name in [PTX].into_iter().chain(CUBINS.map(|(_, name)| name)) {
        let committed = root.join("kernels/built").join(name);
        let new = read(&built.join(name))?;
        if bless {
            write(&committed, &new)?;
        } else if fs::read(&committed).ok().as_deref() != Some(&new) {
            eprintln!("kernels/built/{name} is not what the sources give: run `cargo xtask kernels --bless`");
            same = false;
        }
    }
    println!("kernels: {} and {} cubins, {}", PTX, CUBINS.len(), if bless { "written" } else { "compared" });
    Ok(same)
}

/// The folder with both wheels unpacked, fetched unless they are there.
fn tools(folder: &Path) -> Result<PathBuf, String> {
    let (wanted, marker) = (WHEELS.join("\n"), folder.join("complete"));
    if fs::read_to_string(&marker).is_ok_and(|found| found == wanted) {
        return Ok(folder.to_path_buf());
    }
    println!("fetching {} into {} (once; some 43 MB)", WHEELS.join(" and "), folder.display());
    // What an interrupted run left could be of another version.
    let _ = fs::remove_dir_all(folder);
    // Only for its pip: a system's Python may have none, or not be permitted to install anything.
    let venv = folder.join("venv");
    run_tool(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"];
    run_tool(Command::new(venv.join("bin/python")).args(install).arg(folder).args(WHEELS))?;
    write(&marker, wanted.as_bytes())?;
    Ok(folder.to_path_buf())
}

/// Files of `kernels/` that the device's source includes.
fn headers(folder: &Path) -> Result<Vec<(CString, CString)>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.ends_with(".h"));
    names.sort();
    names.into_iter().map(|name| Ok((text(read(&folder.join(&name))?)?, text(name.into_bytes())?))).collect()
}

/// NVRTC's functions, by name.
struct Nvrtc(Library);

type Program = *mut c_void;

impl Nvrtc {
    fn open(path: &Path) -> Result<Nvrtc, String> {
        // SAFETY: the library is NVIDIA's compiler, whose initialisers do nothing but set it up.
        let library = unsafe { Library::new(path) };
        library.map(Nvrtc).map_err(|error| format!("cannot load {}: {error}", path.display()))
    }

    fn function<T: Copy>(&self, name: &str) -> Result<T, String> {
        // SAFETY: every caller names the type that nvrtc.h declares for the function.
        let found = unsafe { self.0.get::<T>(name) };
        found.map(|function| *function).map_err(|error| format!("{name}: {error}"))
    }

    /// A text that is asked for in two calls: its size, then the text.
    fn text_of(&self, program: Program, what: &str) -> Result<Vec<u8>, String> {
        let size_of: unsafe extern "C" fn(Program, *mut usize) -> c_int =
            self.function(&format!("nvrtcGet{what}Size"))?;
        let get: unsafe extern "C" fn(Program, *mut c_char) -> c_int = self.function(&format!("nvrtcGet{what}"))?;
        let mut size = 0;
        // SAFETY: `program` was created by this library, and `size` is valid for the one number that is written.
        let status = unsafe { size_of(program, &mut size) };
        let mut bytes = vec![0u8; size];
        // SAFETY: there is room for as many bytes as the library asked for.
        if status != 0 || unsafe { get(program, bytes.as_mut_ptr().cast()) } != 0 {
            return Err(format!("nvrtcGet{what} fails"));
        }
        // The NUL at its end.
        bytes.pop();
        Ok(bytes)
    }
}

/// The PTX of the kernels.
fn compile(nvrtc: &Path, folder: &Path) -> Result<Vec<u8>, String> {
    type Texts = *const *const c_char;
    let nvrtc = Nvrtc::open(nvrtc)?;
    let create: unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, Texts, Texts) -> c_int =
        nvrtc.function("nvrtcCreateProgram")?;
    let compile: unsafe extern "C" fn(Program, c_int, Texts) -> c_int = nvrtc.function("nvrtcCompileProgram")?;
    let destroy: unsafe extern "C" fn(*mut Program) -> c_int = nvrtc.function("nvrtcDestroyProgram")?;
    let source = text(read(&folder.join(SOURCE))?)?;
    let name = text(SOURCE.as_bytes().to_vec())?;
    let headers = headers(folder)?;
    let (contents, names): (Vec<_>, Vec<_>) = headers.iter().map(|(text, name)| (text.as_ptr(), name.as_ptr())).unzip();
    let options = OPTIONS.map(|option| text(option.as_bytes().to_vec()));
    let options = options.into_iter().collect::<Result<Vec<_>, _>>()?;
    let option_pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
    let mut program: Program = ptr::null_mut();
    let count = headers.len() as c_int;
    // SAFETY: all texts are NUL-terminated and outlive the program; both arrays have `count` members.
    let status =
        unsafe { create(&mut program, source.as_ptr(), name.as_ptr(), count, contents.as_ptr(), names.as_ptr()) };
    if status != 0 {
        return Err(format!("nvrtcCreateProgram gives {status}"));
    }
    // SAFETY: the program was created above; the array has as many options as are announced.
    let status = unsafe { compile(program, option_pointers.len() as c_int, option_pointers.as_ptr()) };
    let result = match status {
        0 => nvrtc.text_of(program, "PTX"),
        _ => Err(format!("NVRTC:\n{}", String::from_utf8_lossy(&nvrtc.text_of(program, "ProgramLog")?))),
    };
    // SAFETY: the program is not used afterwards.
    unsafe { destroy(&mut program) };
    result
}

fn text(bytes: Vec<u8>) -> Result<CString, String> {
    CString::new(bytes).map_err(|_| "a source holds a NUL".to_string())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn run_tool(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}, see above")),
        Err(error) => Err(format!("cannot run {command:?}: {error}")),
    }
}

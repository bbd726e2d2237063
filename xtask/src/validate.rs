//! Everything that must hold before a change is handed in, step by step. The first failure stops.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs};

/// How much is validated.
pub(crate) struct Options {
    fast: bool,
    fuzz_seconds: u32,
}

impl Options {
    pub(crate) fn parse(words: &[&str]) -> Result<Options, String> {
        let mut options = Options { fast: false, fuzz_seconds: 20 };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--fast" => options.fast = true,
                "--fuzz-seconds" => {
                    let seconds = words.next().and_then(|text| text.parse().ok());
                    options.fuzz_seconds = seconds.ok_or("--fuzz-seconds wants a number")?;
                }
                other => return Err(format!("unknown option '{other}'")),
            }
        }
        Ok(options)
    }
}

enum Outcome {
    Passed,
    /// Not possible here, and why.
    Skipped(String),
    /// What to do about it.
    Failed(String),
}

struct Step {
    name: &'static str,
    fast: bool,
    run: fn(&Path, &Options) -> Outcome,
}

const STEPS: &[Step] = &[
    Step { name: "format", fast: true, run: format },
    Step { name: "house rules", fast: true, run: house_rules },
    Step { name: "clippy", fast: true, run: clippy },
    Step { name: "C interface", fast: true, run: c_interface },
    Step { name: "clippy, no features", fast: false, run: clippy_no_features },
    Step { name: "clippy, validators", fast: false, run: clippy_validators },
    Step { name: "tests", fast: true, run: tests },
    Step { name: "examples", fast: true, run: examples },
    Step { name: "tests, validators", fast: false, run: tests_validators },
    Step { name: "tests, long", fast: false, run: tests_long },
    Step { name: "traces, checked", fast: false, run: traces_checked },
    Step { name: "tiers, 10,000 faults", fast: false, run: tier_faults },
    Step { name: "kernels", fast: false, run: kernels },
    Step { name: "PyTorch", fast: false, run: pytorch },
    Step { name: "documentation", fast: false, run: documentation },
    Step { name: "dependencies", fast: false, run: dependencies },
    Step { name: "loom", fast: false, run: loom },
    Step { name: "fuzz", fast: false, run: fuzz },
    Step { name: "instruction counts", fast: false, run: instruction_counts },
];

/// Runs the steps and prints a summary. Whether all passed.
pub(crate) fn run(root: &Path, options: &Options) -> bool {
    let mut summary: Vec<(&str, String, Duration)> = Vec::new();
    let mut passed = true;
    for step in STEPS.iter().filter(|step| step.fast || !options.fast) {
        println!("\n==> {}", step.name);
        let start = Instant::now();
        let outcome = (step.run)(root, options);
        let time = start.elapsed();
        let words = match outcome {
            Outcome::Passed => "passed".to_string(),
            Outcome::Skipped(reason) => format!("skipped: {reason}"),
            Outcome::Failed(advice) => {
                passed = false;
                format!("FAILED: {advice}")
            }
        };
        println!("==> {}: {words} ({:.1} s)", step.name, time.as_secs_f64());
        summary.push((step.name, words, time));
        if !passed {
            break;
        }
    }
    println!("\n{:<22}{:>8}  result", "step", "seconds");
    for (name, words, time) in &summary {
        println!("{name:<22}{:>8.1}  {words}", time.as_secs_f64());
    }
    passed
}

fn format(root: &Path, _: &Options) -> Outcome {
    let outcome = cargo(root, "fmt --all -- --check", "run `cargo fmt --all`");
    if matches!(outcome, Outcome::Passed) && root.join("fuzz/Cargo.toml").exists() {
        // Outside the workspace, since it builds with nightly only.
        let advice = "run `cargo fmt --manifest-path fuzz/Cargo.toml`";
        return cargo(root, "fmt --manifest-path fuzz/Cargo.toml -- --check", advice);
    }
    outcome
}

fn house_rules(root: &Path, _: &Options) -> Outcome {
    let advice = "see the lines above; the rules are in CONTRIBUTING.md";
    if crate::tidy::run(root) { Outcome::Passed } else { Outcome::Failed(advice.to_string()) }
}

fn c_interface(root: &Path, _: &Options) -> Outcome {
    let advice = "see above; `cargo xtask abi --bless` takes the change over, for CHANGELOG.md to tell";
    if crate::abi::run(root, false) { Outcome::Passed } else { Outcome::Failed(advice.to_string()) }
}

const CLIPPY_ADVICE: &str = "correct what clippy reports above";

fn clippy(root: &Path, _: &Options) -> Outcome {
    cargo(root, "clippy --workspace --all-targets -- -D warnings", CLIPPY_ADVICE)
}

fn clippy_no_features(root: &Path, _: &Options) -> Outcome {
    cargo(root, "clippy -p stratalloc --no-default-features --all-targets -- -D warnings", CLIPPY_ADVICE)
}

fn clippy_validators(root: &Path, _: &Options) -> Outcome {
    let arguments = "clippy --workspace --all-targets --features stratalloc/validate -- -D warnings";
    cargo(root, arguments, CLIPPY_ADVICE)
}

fn tests(root: &Path, _: &Options) -> Outcome {
    cargo(root, "test --workspace", "run the test named above alone, with `-- --nocapture`")
}

/// The tests have built them: this runs them.
fn examples(root: &Path, _: &Options) -> Outcome {
    let Ok(folder) = fs::read_dir(root.join("examples")) else {
        return Outcome::Skipped("there is no examples/".to_string());
    };
    let paths = folder.flatten().map(|entry| entry.path());
    // Those in C and C++ are run by the tests of crates/capi.
    let rust = paths.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let mut names: Vec<String> = rust.filter_map(|path| Some(path.file_stem()?.to_str()?.to_string())).collect();
    names.sort();
    for name in names {
        let advice = format!("examples/{name}.rs fails: see above");
        if let failed @ Outcome::Failed(_) = cargo(root, &format!("run --quiet --example {name}"), &advice) {
            return failed;
        }
    }
    Outcome::Passed
}

fn tests_validators(root: &Path, _: &Options) -> Outcome {
    let advice = "run the test named above alone, with `--features stratalloc/validate -- --nocapture`";
    // The packages that have an allocator. The others would do again what they have done without.
    let packages = "-p stratalloc -p stratalloc-capi -p stratalloc-cli -p stratalloc-preload";
    cargo(root, &format!("test {packages} --features stratalloc/validate"), advice)
}

/// Tests whose name begins with `long_`: too long for every day, or with validators.
fn tests_long(root: &Path, _: &Options) -> Outcome {
    cargo(
        root,
        "test --workspace --lib --test nvme --test replay_traces -- --ignored long_",
        "run the test named above alone, with `--ignored`",
    )
}

/// Every recorded trace from end to end under the happens-before checker.
fn traces_checked(root: &Path, _: &Options) -> Outcome {
    let mut traces: Vec<String> = Vec::new();
    for folder in ["tests/traces", "tests/traces/own"] {
        let Ok(found) = fs::read_dir(root.join(folder)) else {
            return Outcome::Failed(format!("{folder} is missing"));
        };
        let names = found.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        traces.extend(names.filter(|name| name.ends_with(".trace.zst")).map(|name| format!("{folder}/{name}")));
    }
    traces.sort();
    let replay = format!("run --quiet --release -p stratalloc-cli -- replay --checker --repeat 1 {}", traces.join(" "));
    let advice = "the reports above name both places of an access that is out of order";
    if let failed @ Outcome::Failed(_) = cargo(root, &replay, advice) {
        return failed;
    }
    // By plan, pass after pass: the second and third have layouts.
    let few = traces.iter().filter(|name| ["gpt2xl", "prefetch"].iter().any(|part| name.contains(part)));
    let few: Vec<&str> = few.map(String::as_str).collect();
    let settings = "--checker --repeat 3 --steps --config plan:inline";
    cargo(root, &format!("run --quiet --release -p stratalloc-cli -- replay {settings} {}", few.join(" ")), advice)
}

/// All of the schedules, of which the tests run a few.
fn tier_faults(root: &Path, _: &Options) -> Outcome {
    let mut run = command("cargo", "test --release -p stratalloc --test tier_faults");
    let advice = "the schedule that failed is named above";
    if let failed @ Outcome::Failed(_) = run_in(root, run.env("STRATALLOC_TEST_SCHEDULES", "10000"), advice) {
        return failed;
    }
    // Files, peers and codecs take longer.
    let mut run = command("cargo", "test --release -p stratalloc --features nvme,codecs --test tier_random");
    run_in(root, run.env("STRATALLOC_TEST_SCHEDULES", "500"), advice)
}

/// The committed PTX and cubins are those of the sources. The compilers are fetched once.
fn kernels(root: &Path, _: &Options) -> Outcome {
    if !succeeds(root, "python3", "--version") {
        return Outcome::Failed("install Python: `apt-get install python3 python3-venv`".to_string());
    }
    if crate::kernels::run(root, false) {
        return Outcome::Passed;
    }
    Outcome::Failed("see above; `cargo xtask kernels --bless` takes a change of the sources over".to_string())
}

fn documentation(root: &Path, _: &Options) -> Outcome {
    let mut command = command("cargo", "doc --workspace --lib --no-deps");
    run_in(root, command.env("RUSTDOCFLAGS", "-Dwarnings"), "correct the documentation reported above")
}

fn dependencies(root: &Path, _: &Options) -> Outcome {
    if !succeeds(root, "cargo", "deny --version")
        && let failed @ Outcome::Failed(_) = install(root, "cargo-deny --locked")
    {
        return failed;
    }
    // The graph has crates of other platforms; `--offline` keeps the advisory database out of it.
    if let failed @ Outcome::Failed(_) = cargo(root, "fetch --locked", "commit an up-to-date Cargo.lock") {
        return failed;
    }
    let advice = "see deny.toml: another crate, or a licence added to the list with a reason";
    cargo(root, "deny --offline check bans sources licenses", advice)
}

fn loom(root: &Path, _: &Options) -> Outcome {
    if !root.join("tests/loom/Cargo.toml").exists() {
        return Outcome::Skipped("there is no tests/loom yet".to_string());
    }
    let mut command = command("cargo", "test --release --manifest-path tests/loom/Cargo.toml");
    // Its own folder, or the flag would have everything else built anew.
    command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", target(root).join("loom"));
    run_in(root, &mut command, "set LOOM_LOG=trace and run the model named above alone")
}

fn fuzz(root: &Path, options: &Options) -> Outcome {
    if !root.join("fuzz/Cargo.toml").exists() {
        return Outcome::Skipped("there is no fuzz/ yet".to_string());
    }
    // `cargo +nightly` would have rustup download a toolchain that is missing: the list is asked instead.
    let toolchains = output(root, "rustup", "toolchain list").unwrap_or_default();
    if !toolchains.lines().any(|line| line.starts_with("nightly")) {
        return Outcome::Skipped("no nightly toolchain: `rustup toolchain install nightly`".to_string());
    }
    if !succeeds(root, "rustup", "run nightly cargo fuzz --version")
        && let failed @ Outcome::Failed(_) = install(root, "cargo-fuzz --locked")
    {
        return failed;
    }
    let Some(targets) = output(root, "rustup", "run nightly cargo fuzz list") else {
        return Outcome::Failed("`cargo +nightly fuzz list` fails".to_string());
    };
    for target in targets.split_whitespace() {
        let seconds = options.fuzz_seconds;
        // What is found goes to the first folder, which git ignores; a seed or two are in the second.
        let folders = [format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}")];
        if let Err(error) = folders.iter().try_for_each(|folder| fs::create_dir_all(root.join(folder))) {
            return Outcome::Failed(format!("fuzz/corpus cannot be made: {error}"));
        }
        let folders = folders.join(" ");
        let arguments =
            format!("run nightly cargo fuzz run {target} {folders} -- -max_total_time={seconds} -verbosity=0");
        let advice = format!("minimise with `cargo +nightly fuzz tmin {target} FILE`, add the case to the tests");
        if let failed @ Outcome::Failed(_) = run_in(root, &mut command("rustup", &arguments), &advice) {
            return failed;
        }
    }
    Outcome::Passed
}

/// The Python package on the real wheel, which is installed once.
fn pytorch(root: &Path, _: &Options) -> Outcome {
    if !succeeds(root, "python3", "--version") {
        return Outcome::Failed("install Python: `apt-get install python3 python3-venv`".to_string());
    }
    if crate::torch::run(root, &crate::torch::Options::tests()) {
        return Outcome::Passed;
    }
    Outcome::Failed("see above; `cargo xtask torch -- NAME_OF_THE_TEST_FILE` runs one file".to_string())
}

/// The bench target `instructions` of `benches/`, a crate of the workspace that uses gungraun.
fn instruction_counts(root: &Path, _: &Options) -> Outcome {
    let manifest = fs::read_to_string(root.join("benches/Cargo.toml")).unwrap_or_default();
    if !manifest.contains("gungraun") {
        return Outcome::Skipped("there is no benches/ with gungraun yet".to_string());
    }
    if !succeeds(root, "valgrind", "--version") {
        return Outcome::Failed("install valgrind: `apt-get install valgrind`".to_string());
    }
    let lock = fs::read_to_string(root.join("Cargo.lock")).unwrap_or_default();
    let Some(version) = locked_version(&lock, "gungraun") else {
        return Outcome::Failed("Cargo.lock has no gungraun: run `cargo update -p gungraun`".to_string());
    };
    // The runner refuses to work with a library of another version.
    let found = output(root, "gungraun-runner", "--version").unwrap_or_default();
    if !found.split_whitespace().any(|word| word == version)
        && let failed @ Outcome::Failed(_) = install(root, &format!("gungraun-runner --version ={version} --locked"))
    {
        return failed;
    }
    let arguments = "bench --manifest-path benches/Cargo.toml --bench instructions";
    cargo(root, arguments, "a path costs more instructions than its limit: see the benchmark above")
}

/// The version of `package` in the text of a `Cargo.lock`.
fn locked_version<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let (_, after) = lock.split_once(&format!("name = \"{package}\"\n"))?;
    after.lines().next()?.strip_prefix("version = \"")?.strip_suffix('"')
}

pub(crate) fn target(root: &Path) -> std::path::PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |path| root.join(path))
}

pub(crate) fn command(program: &str, arguments: &str) -> Command {
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace());
    command
}

fn cargo(root: &Path, arguments: &str, advice: &str) -> Outcome {
    run_in(root, &mut command("cargo", arguments), advice)
}

fn install(root: &Path, what: &str) -> Outcome {
    cargo(root, &format!("install {what}"), "the installation failed: is there a network?")
}

fn run_in(root: &Path, command: &mut Command, advice: &str) -> Outcome {
    println!("$ {}", shown(command));
    match command.current_dir(root).status() {
        Ok(status) if status.success() => Outcome::Passed,
        Ok(_) => Outcome::Failed(advice.to_string()),
        Err(error) => Outcome::Failed(format!("{} does not start: {error}", command.get_program().display())),
    }
}

/// The command as it would be typed.
fn shown(command: &Command) -> String {
    let set = command.get_envs().filter_map(|(name, value)| Some(format!("{}={:?}", name.display(), value?)));
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    set.chain(words.map(|word| word.display().to_string())).collect::<Vec<_>>().join(" ")
}

pub(crate) fn succeeds(root: &Path, program: &str, arguments: &str) -> bool {
    output(root, program, arguments).is_some()
}

/// What a command prints, if it succeeds.
pub(crate) fn output(root: &Path, program: &str, arguments: &str) -> Option<String> {
    let output = command(program, arguments).current_dir(root).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let options = Options::parse(&["--fast", "--fuzz-seconds", "5"]).ok().unwrap();
        assert!(options.fast && options.fuzz_seconds == 5);
        for words in [&["--slow"][..], &["--fuzz-seconds"], &["--fuzz-seconds", "x"]] {
            assert!(Options::parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn versions_are_read_from_the_lock() {
        let lock = "[[package]]\nname = \"gungraun-macros\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"gungraun\"\nversion = \"0.20.0\"\n";
        assert_eq!(locked_version(lock, "gungraun"), Some("0.20.0"));
        assert_eq!(locked_version(lock, "other"), None);
    }
}

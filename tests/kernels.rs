//! The kernels' sources on the CPU, under AddressSanitizer and UndefinedBehaviorSanitizer. What they do on a device is said by
//! `tests/common/contract.rs`, for all drivers.

use std::path::PathBuf;
use std::process::Command;

const SANITIZERS: &str = "-fsanitize=address,undefined";

fn kernels() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "kernels"].iter().collect()
}

/// A C compiler that links the sanitizers, or why there is none.
fn compiler(folder: &std::path::Path) -> Result<&'static str, String> {
    let probe = folder.join("probe.c");
    std::fs::write(&probe, "int main(void) { return 0; }\n").unwrap();
    let links = |name: &&str| {
        let mut command = Command::new(name);
        command.arg(SANITIZERS).arg(&probe).arg("-o").arg(folder.join("probe"));
        command.output().is_ok_and(|output| output.status.success())
            && Command::new(folder.join("probe")).status().is_ok_and(|status| status.success())
    };
    ["cc", "gcc", "clang"].into_iter().find(links).ok_or_else(|| "no C compiler links the sanitizers".to_string())
}

#[test]
fn every_byte_is_in_bounds_and_defined() {
    let folder = std::env::temp_dir().join(format!("stratalloc-kernels-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    match compiler(&folder) {
        Err(reason) => {
            #[allow(clippy::print_stdout, reason = "a skipped test says so")]
            {
                println!("skipped: {reason}");
            }
        }
        Ok(compiler) => {
            let program = folder.join("test");
            let mut build = Command::new(compiler);
            build.args(["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing", SANITIZERS]);
            build.arg("-fno-sanitize-recover=all").arg(kernels().join("test.c")).arg("-o").arg(&program);
            let built = build.output().unwrap();
            assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
            let ran = Command::new(&program).output().unwrap();
            let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
            assert!(ran.status.success(), "{out}{err}");
            let cases: u64 = out.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap();
            assert!(cases > 10_000, "{out}");
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn checksums_see_what_they_say() {
    use stratalloc::driver::kernels::checksum;
    let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 7 % 251) as u8).collect();
    let sum = checksum(&bytes);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert_ne!(checksum(&damaged), sum, "byte {at}");
    }
    let mut swapped = bytes.clone();
    swapped.swap_with_slice(&mut [&bytes[8..16], &bytes[..8], &bytes[16..]].concat());
    assert_ne!(checksum(&swapped), sum, "words in another order");
    assert_ne!(checksum(&[&bytes[..], &[0]].concat()), sum, "a zero more");
    assert_eq!(checksum(&[]), 0);
}

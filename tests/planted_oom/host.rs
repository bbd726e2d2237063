//! A host without memory for metadata, in a process of its own.

use std::process::Command;

use crate::common::rig::MIB;
use crate::scene::{Scene, device};
use stratalloc::{AllocRequest, OomCause, OomRemedy};

const INSIDE: &str = "STRATALLOC_TEST_HOST_MEMORY";

/// Address space that the process may have; `None`: as much as it may ask for.
fn bound(bytes: Option<u64>) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is there to be written.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) }, 0);
    limit.rlim_cur = bytes.unwrap_or(limit.rlim_max);
    // SAFETY: the struct is there to be read.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
}

fn address_space() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn the_host_has_no_memory() {
    if std::env::var_os(INSIDE).is_none() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "host::the_host_has_no_memory", "--nocapture", "--test-threads=1"]).env(INSIDE, "1");
        let output = child.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let mut scene = Scene::new(device(64), "", "").asking(AllocRequest::new(MIB / 8));
    // The heap and the thread's cache are there, the first entry of an address is not: it takes half a MiB for a block of this size.
    scene.allocator.tag("warm").unwrap();
    let warm: Vec<u8> = vec![1; 1 << 16];
    bound(Some(address_space() + (300 << 10)));
    let failed = scene.ask();
    let explanation = scene.allocator.last_oom(0).unwrap();
    bound(None);
    drop(warm);
    let (error, explanation) = (failed.expect_err("there is no room"), explanation.expect("it is explained"));
    println!("{explanation}");
    assert_eq!(explanation.cause, OomCause::HostMemory, "{error}");
    assert_eq!(explanation.remedy(), Some(&OomRemedy::FreeHostMemory));
    scene.ask().unwrap();
    scene.allocator.validate(0).unwrap().unwrap();
}

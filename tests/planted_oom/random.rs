//! Programs at random on small devices: whatever an explanation says suffices does.

use std::collections::BTreeMap;

use crate::common::rig::{KIB, MIB, Rng};
use crate::scene::{POOL, Scene, device};
use stratalloc::driver::Driver;
use stratalloc::{AllocFlags, AllocRequest, Lifetime, OomCause, OomRemedy, StreamId, Tag};

/// A request of any kind.
fn request(rng: &mut Rng, streams: &[StreamId], tags: &[Tag]) -> AllocRequest {
    let sizes = [512, 3 * KIB, 48 * KIB, 100 * KIB, 400 * KIB, 700 * KIB, MIB, 2 * MIB, 5 * MIB, 11 * MIB, 24 * MIB];
    let mut request = AllocRequest::new(rng.pick(&sizes)).stream(rng.pick(streams)).tag(rng.pick(tags));
    if rng.percent(5) {
        request.alignment = rng.pick(&[4 * KIB, 64 * KIB, MIB]);
    }
    if rng.percent(10) {
        request.lifetime = Lifetime::Persistent;
    }
    if rng.percent(4) {
        (request.flags, request.alignment) = (AllocFlags::DEDICATED, 512);
    }
    if rng.percent(15) {
        request.flags |= AllocFlags::NO_GROW;
    }
    request
}

/// How often each cause was met.
fn run(seed: u64, met: &mut BTreeMap<String, u32>) {
    let mut rng = Rng(seed);
    let text = rng.pick(&[
        "",
        "limit:40MiB",
        "chunk_max:2MiB",
        "chunk:8MiB",
        "magazine:0",
        "cross_stream_wait:true",
        "cross_stream_wait:false",
    ]);
    let mut scene = Scene::new(device(64).vmm(!seed.is_multiple_of(3)), text, "");
    let mut streams = vec![StreamId::DEFAULT];
    streams.extend((0..2).map(|_| scene.device.create_stream().unwrap()));
    let tags: Vec<Tag> =
        ["a", "b"].into_iter().map(|name| scene.allocator.tag(name).unwrap()).chain([Tag::NONE]).collect();
    let (mut open, mut capturing) = (false, false);
    for step in 0..400 {
        match rng.below(100) {
            0..45 => {}
            45..80 => {
                let Some(&(ptr, _)) = scene.held.get(rng.index(scene.held.len())) else { continue };
                if rng.percent(30) {
                    let stream = rng.pick(&streams);
                    if !capturing {
                        scene.busy(stream, ptr);
                    }
                }
                scene.free(ptr);
                continue;
            }
            80..86 => {
                let stream = rng.pick(&streams);
                scene.device.synchronize_stream(stream).unwrap();
                continue;
            }
            86..90 if !open => {
                let stream = rng.pick(&streams);
                scene.allocator.route_private_pool(0, POOL, move |other| other == stream).unwrap();
                open = true;
                continue;
            }
            86..94 if open => {
                scene.allocator.end_private_pool(0, POOL).unwrap();
                open = false;
                continue;
            }
            94..96 if !capturing => {
                scene.allocator.begin_capture(0).unwrap();
                capturing = true;
                continue;
            }
            94..98 if capturing => {
                scene.allocator.end_capture(0).unwrap();
                capturing = false;
                continue;
            }
            _ => {}
        }
        scene.request = request(&mut rng, &streams, &tags);
        if scene.ask().is_ok() {
            continue;
        }
        let told = scene.allocator.last_oom(0).unwrap().unwrap();
        *met.entry(format!("{:?}", told.cause)).or_default() += 1;
        let doable = told.advice.iter().filter(|advice| advice.suffices);
        let doable =
            doable.map(|advice| &advice.remedy).filter(|remedy| !matches!(remedy, OomRemedy::Configure { .. }));
        let doable: Vec<&OomRemedy> = doable.collect();
        if doable.is_empty() {
            assert!(told.cause != OomCause::NoGrow, "{told}");
            *met.entry("nothing to do".to_string()).or_default() += 1;
            continue;
        }
        let remedy = rng.pick(&doable);
        capturing &= *remedy != OomRemedy::EndCapture;
        scene.carry_out(remedy);
        if let Err(error) = scene.ask() {
            let after = scene.allocator.last_oom(0).unwrap().unwrap();
            panic!("seed {seed}, step {step}: '{remedy}' does not help: {error}\nbefore: {told}\nafter: {after}");
        }
        let valid = scene.allocator.validate(0).unwrap();
        assert_eq!(valid, Ok(()), "seed {seed}, step {step}: after '{remedy}' for {told}");
    }
    if open {
        scene.allocator.end_private_pool(0, POOL).unwrap();
    }
}

#[test]
fn whatever_is_said_to_suffice_does() {
    let mut met = BTreeMap::new();
    (1..=150).for_each(|seed| run(seed, &mut met));
    println!("{met:#?}");
    assert!(met.len() >= 8, "{met:#?}");
}

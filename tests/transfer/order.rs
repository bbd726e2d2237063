//! Streams come after transfers and transfers after streams, no more than is needed: time on the software device's model.

use std::sync::Arc;

use stratalloc::StreamId;
use stratalloc::driver::Driver;
use stratalloc::driver::soft::{Access, AccessKind, LatencyModel, SoftDevice};
use stratalloc::tier::transfer::{Engine, EngineConfig, Place, Transfer};
use stratalloc::tier::{HostConfig, HostTier, Tier};

use super::kit::device_memory;

const LAYERS: usize = 32;
const LAYER: u64 = 32 << 20;
/// 32 MiB take 1.34 ms of the link.
const COMPUTE_NS: u64 = 2_000_000;
const LINK_NS: u64 = LAYER / 25;

struct Setup {
    soft: Arc<SoftDevice>,
    driver: Arc<dyn Driver>,
    tier: Arc<dyn Tier>,
    engine: Engine,
    compute: StreamId,
}

fn setup() -> Setup {
    let soft = SoftDevice::builder(1 << 30).latency(LatencyModel::A100).checker(true).build().unwrap();
    let driver: Arc<dyn Driver> = soft.clone();
    let config = HostConfig { capacity_bytes: 256 << 20, step_bytes: 256 << 20, background: false };
    let tier: Arc<dyn Tier> = Arc::new(HostTier::new(driver.clone(), &config).unwrap());
    // Pinning takes its time before it is measured.
    tier.release(tier.reserve(1).unwrap());
    let engine = Engine::new(driver.clone(), EngineConfig::default()).unwrap();
    let compute = driver.create_stream().unwrap();
    Setup { soft, driver, tier, engine, compute }
}

/// A step of a model whose weights are in pinned memory: before each layer they come into one of two places, after it its activations go
/// out. `ahead` says how many layers early the weights are asked for. Returns how much longer it took than computing alone.
fn step(ahead: usize) -> u64 {
    let Setup { soft, driver, tier, engine, compute } = setup();
    let weights = [device_memory(&*driver, LAYER), device_memory(&*driver, LAYER)];
    let activations = [device_memory(&*driver, LAYER), device_memory(&*driver, LAYER)];
    let place = engine.save(weights[0], LAYER, &tier, None, &[]).unwrap().wait().unwrap().unwrap();
    let began = driver.clock_ns();
    let load = |layer: usize| -> Transfer { engine.load(&place, weights[layer % 2], &[compute]).unwrap() };
    let mut loads: Vec<Transfer> = (0..ahead).map(load).collect();
    let mut saves: Vec<Transfer> = Vec::new();
    let mut saved: Vec<Arc<Place>> = Vec::new();
    for layer in 0..LAYERS {
        if layer + ahead < LAYERS {
            loads.push(load(layer + ahead));
        }
        engine.order(&loads[layer], compute).unwrap();
        // The activations that lie where this layer's will have gone before.
        if layer >= 2 {
            engine.order(&saves[layer - 2], compute).unwrap();
        }
        let accesses = [
            Access { ptr: weights[layer % 2], size: LAYER, kind: AccessKind::Read },
            Access { ptr: activations[layer % 2], size: LAYER, kind: AccessKind::Write },
        ];
        soft.keep_busy(compute, &accesses, COMPUTE_NS).unwrap();
        saves.push(engine.save(activations[layer % 2], LAYER, &tier, None, &[compute]).unwrap());
        if layer >= 2 {
            saved.extend(saves[layer - 2].wait().unwrap());
            // The tier has room for four.
            saved.clear();
        }
    }
    driver.synchronize_stream(compute).unwrap();
    let took = driver.clock_ns() - began;
    saves.iter().skip(LAYERS - 2).for_each(|save| assert!(save.wait().unwrap().is_some()));
    loads.iter().for_each(|load| assert!(load.wait().unwrap().is_none()));
    assert_eq!(soft.report_count(), 0, "{}", soft.reports()[0]);
    took - LAYERS as u64 * COMPUTE_NS
}

#[test]
#[allow(clippy::print_stdout, reason = "a figure that documents quote")]
fn prefetch_hides_transfers_under_computation() {
    // All loads but the first fit under the computation of the layer before.
    let hideable = (LAYERS as u64 - 1) * LINK_NS;
    let exposed = step(1).saturating_sub(LINK_NS);
    let hidden = 1.0 - exposed as f64 / hideable as f64;
    println!("a step with prefetch hides {:.1} % of the transfer time that fits under computation", hidden * 100.0);
    assert!(hidden >= 0.90, "{hidden}");
    // Without, nothing is hidden: the measure can fail.
    let exposed = step(0).saturating_sub(LINK_NS);
    assert!(1.0 - (exposed as f64 / hideable as f64) < 0.2, "{exposed}");
}

#[test]
fn a_stream_waits_for_its_own_transfer_only() {
    let Setup { soft, driver, tier, engine, compute } = setup();
    let (small, large) = (device_memory(&*driver, 2 << 20), device_memory(&*driver, LAYER));
    let near = engine.save(small, 2 << 20, &tier, None, &[]).unwrap().wait().unwrap().unwrap();
    let far = engine.save(large, LAYER, &tier, None, &[]).unwrap().wait().unwrap().unwrap();
    let began = driver.clock_ns();
    let first = engine.load(&near, small, &[]).unwrap();
    let second = engine.load(&far, large, &[]).unwrap();
    engine.order(&first, compute).unwrap();
    soft.keep_busy(compute, &[Access { ptr: small, size: 2 << 20, kind: AccessKind::Read }], 1000).unwrap();
    driver.synchronize_stream(compute).unwrap();
    assert!(driver.clock_ns() - began < LINK_NS, "{}", driver.clock_ns() - began);
    second.wait().unwrap();
    assert!(driver.clock_ns() - began >= LINK_NS);
    assert_eq!(soft.report_count(), 0, "{}", soft.reports()[0]);
}

#[test]
fn a_transfer_comes_after_the_streams_that_it_is_told() {
    let Setup { soft, driver, tier, engine, compute } = setup();
    let at = device_memory(&*driver, 2 << 20);
    soft.keep_busy(compute, &[Access { ptr: at, size: 2 << 20, kind: AccessKind::Write }], 5_000_000).unwrap();
    let began = driver.clock_ns();
    let save = engine.save(at, 2 << 20, &tier, None, &[compute]).unwrap();
    // Beginning waits for nothing.
    assert!(driver.clock_ns() - began < 1_000_000);
    assert!(save.poll().is_none());
    save.wait().unwrap();
    assert!(driver.clock_ns() - began >= 5_000_000);
    assert!(engine.stats().stall_ns > 4_000_000);
    assert_eq!(soft.report_count(), 0, "{}", soft.reports()[0]);
}

#[test]
fn nothing_is_a_function_of_time() {
    let hash = || {
        let Setup { soft, driver, tier, engine, compute } = setup();
        let at = device_memory(&*driver, LAYER);
        for _ in 0..3 {
            let place = engine.save(at, LAYER, &tier, None, &[compute]).unwrap().wait().unwrap().unwrap();
            let load = engine.load(&place, at, &[compute]).unwrap();
            engine.order(&load, compute).unwrap();
            load.wait().unwrap();
        }
        (soft.state_hash(), driver.clock_ns())
    };
    assert_eq!(hash(), hash());
}

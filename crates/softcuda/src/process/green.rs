//! Green contexts: parts of a device's multiprocessors. They are told apart by handle and count; all work runs alike.

use std::sync::Arc;

use super::contexts;
use super::devices::{self, Device};
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::{In, Out};
use crate::abi::structs::DevResource;
use crate::handles::{Kind, Table};
use crate::stream::{LEGACY, events, streams};

const SM: u32 = 1;
const SM_COUNT: u32 = 132;
/// Multiprocessors are dealt out by so many.
const SM_UNIT: u32 = 8;

#[derive(Debug)]
struct Green {
    handle: usize,
    device: &'static Device,
    sms: u32,
}

#[derive(Debug)]
struct Descriptor {
    handle: usize,
    sms: u32,
}

static GREENS: Table<Green> = Table::new(Kind::Green);
static DESCRIPTORS: Table<Descriptor> = Table::new(Kind::Descriptor);

fn resource(sms: u32) -> DevResource {
    let mut sm = [0; 12];
    sm[..3].copy_from_slice(&[sms, SM_UNIT, SM_UNIT]);
    DevResource { kind: SM, padding: [0; 92], sm }
}

fn give(out: Out<DevResource>, kind: u32, sms: u32) -> Res {
    if kind == SM { out.set(resource(sms)) } else { Err(Code::INVALID_VALUE) }
}

pub(crate) fn device_resource(device: i32, resource: Out<DevResource>, kind: u32) -> Res {
    resource.check()?;
    devices::by_ordinal(device)?;
    give(resource, kind, SM_COUNT)
}

pub(crate) fn context_resource(context: usize, resource: Out<DevResource>, kind: u32) -> Res {
    resource.check()?;
    contexts::by_handle(context)?;
    give(resource, kind, SM_COUNT)
}

pub(crate) fn green_resource(green: usize, resource: Out<DevResource>, kind: u32) -> Res {
    resource.check()?;
    give(resource, kind, GREENS.get(green)?.sms)
}

pub(crate) fn split(
    result: Out<DevResource>,
    groups: Out<u32>,
    input: In<DevResource>,
    remaining: Out<DevResource>,
    _flags: u32,
    minimum: u32,
) -> Res {
    groups.check()?;
    let input = input.get()?;
    let size = minimum.max(1).next_multiple_of(SM_UNIT);
    let whole = input.sm[0];
    if input.kind != SM || whole == 0 || size > whole {
        return Err(Code::INVALID_RESOURCE_CONFIGURATION);
    }
    let wanted = if result.is_null() { whole / size } else { groups.get()?.min(whole / size) };
    if !result.is_null() {
        result.set_all((0..wanted).map(|_| resource(size)))?;
    }
    remaining.set_if(resource(whole - wanted * size));
    groups.set(wanted)
}

pub(crate) fn describe(descriptor: Out<usize>, resources: In<DevResource>, count: u32) -> Res {
    descriptor.check()?;
    if count == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let resources = resources.all(count as usize)?;
    if resources.iter().any(|resource| resource.kind != SM) {
        return Err(Code::INVALID_RESOURCE_TYPE);
    }
    let sms = resources.iter().fold(0u32, |sum, resource| sum.saturating_add(resource.sm[0]));
    descriptor.set(DESCRIPTORS.insert(|handle| Descriptor { handle, sms })?.handle)
}

pub(crate) fn create(green: Out<usize>, descriptor: usize, device: i32, flags: u32) -> Res {
    green.check()?;
    let device = devices::by_ordinal(device)?;
    let sms = DESCRIPTORS.get(descriptor)?.sms;
    // CU_GREEN_CTX_DEFAULT_STREAM must be given.
    if flags != 1 {
        return Err(Code::INVALID_VALUE);
    }
    contexts::retain(device)?;
    green.set(GREENS.insert(|handle| Green { handle, device, sms })?.handle)
}

pub(crate) fn destroy(green: usize) -> Res {
    let green: Arc<Green> = GREENS.remove(green)?;
    contexts::primary_release(green.device.ordinal as i32)
}

pub(crate) fn context(context: Out<usize>, green: usize) -> Res {
    context.check()?;
    let device = GREENS.get(green)?.device;
    let primary = contexts::retain(device)?;
    contexts::primary_release(device.ordinal as i32)?;
    context.set(primary.handle)
}

pub(crate) fn create_stream(stream: Out<usize>, green: usize, flags: u32, priority: i32) -> Res {
    stream.check()?;
    let device = GREENS.get(green)?.device;
    let context = contexts::retain(device)?;
    contexts::primary_release(device.ordinal as i32)?;
    stream.set(streams::make(context, flags, priority)?.handle)
}

pub(crate) fn record_event(green: usize, event: usize) -> Res {
    GREENS.get(green)?;
    events::record(event, LEGACY)
}

pub(crate) fn wait_event(green: usize, event: usize) -> Res {
    GREENS.get(green)?;
    events::wait(LEGACY, event, 0)
}

pub(crate) fn of_stream(stream: usize, green: Out<usize>) -> Res {
    green.check()?;
    streams::resolve(stream)?;
    green.set(0)
}

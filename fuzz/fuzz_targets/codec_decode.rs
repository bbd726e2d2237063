//! The codecs: whatever the bytes, numbers or an error. What is encoded decodes, to the same bytes where the codec is lossless.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stratalloc::tier::codec::{NAMES, by_name};

fuzz_target!(|input: (u8, u16, &[u8])| {
    let (choice, size, data) = input;
    let name = NAMES[usize::from(choice) % NAMES.len()];
    let Some(codec) = by_name(name).expect("all of them are built") else { return };
    let mut out = vec![0; usize::from(size)];
    let _ = codec.decode(data, &mut out);

    let encode = |bytes: &[u8]| {
        let mut encoded = vec![0; codec.bound(bytes.len())];
        let length = codec.encode(bytes, &mut encoded).expect("there is room");
        encoded.truncate(length);
        encoded
    };
    let mut encoded = encode(data);
    let mut back = vec![0; data.len()];
    codec.decode(&encoded, &mut back).expect("it was encoded");
    assert!(!codec.lossless() || back == data, "{name}");

    // Damage behind the header, which would keep everything else from being looked at.
    for (place, byte) in encoded.iter_mut().skip(16).zip(data) {
        *place ^= byte;
    }
    let _ = codec.decode(&encoded, &mut back);
});

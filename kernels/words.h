/* A pattern of 32 bits over a range, and whether it is still there. Byte k of the range is byte k % 4 of the pattern, the
 * lowest first, wherever the range begins. */
#ifndef STRATALLOC_WORDS_H
#define STRATALLOC_WORDS_H
#include "portable.h"

/* What a check has found. The host sets `first` to all ones and `count` to 0; several checks may add to one. */
struct finding {
    u64 count; /* bytes that differ */
    u64 first; /* the lowest such byte: its offset in the upper 56 bits, what is there in the lower 8 */
};

DEVICE u8 pattern_byte(u32 pattern, u64 at) { return (u8)(pattern >> (at % 4 * 8)); }

/* The pattern as it goes on after so many bytes, twice. */
DEVICE u64 pattern_after(u32 pattern, u64 bytes) {
    u32 shift = (u32)(bytes % 4 * 8);
    u64 twice = (u64)pattern << 32 | pattern;
    u64 turned = (twice >> shift) & 0xffffffffu;
    return turned << 32 | turned;
}

DEVICE void fill_words(struct thread t, u64 ptr, u64 size, u32 pattern) {
    u64 head = bytes_to_boundary(ptr, 16, size);
    u64 pieces = (size - head) / 16, tail = head + pieces * 16;
    u64 word = pattern_after(pattern, head);
    struct wide both = {word, word};
    for (u64 i = t.index; i < pieces; i += t.count) AT(struct wide, ptr + head)[i] = both;
    for (u64 i = t.index; i < head + (size - tail); i += t.count) {
        u64 at = i < head ? i : tail + (i - head);
        AT(u8, ptr)[at] = pattern_byte(pattern, at);
    }
}

DEVICE void check_byte(u64 ptr, u32 pattern, u64 at, struct finding *found) {
    u8 byte = AT(const u8, ptr)[at];
    if (byte == pattern_byte(pattern, at)) return;
    u64 place = at << 8 | byte;
    found->count++;
    if (place < found->first) found->first = place;
}

DEVICE void check_words(struct thread t, u64 ptr, u64 size, u32 pattern, struct finding *result) {
    u64 head = bytes_to_boundary(ptr, 16, size);
    u64 pieces = (size - head) / 16, tail = head + pieces * 16;
    u64 word = pattern_after(pattern, head);
    struct finding found = {0, ~0ull};
    for (u64 i = t.index; i < pieces; i += t.count) {
        struct wide both = AT(const struct wide, ptr + head)[i];
        if (both.low == word && both.high == word) continue;
        for (u64 byte = 0; byte < 16; byte++) check_byte(ptr, pattern, head + i * 16 + byte, &found);
    }
    for (u64 i = t.index; i < head + (size - tail); i += t.count) {
        check_byte(ptr, pattern, i < head ? i : tail + (i - head), &found);
    }
    if (found.count == 0) return;
    add_atomically(&result->count, found.count);
    lower_atomically(&result->first, found.first);
}

#endif

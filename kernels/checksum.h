/* A sum of 64 bits over a range: of its words of 8 bytes, the lowest byte first and the last padded with zeros, each mixed
 * with its place, and of its size. Addition has no order, so threads need none; the mixing is a bijection of the word for each
 * place, so that damage within one word is always seen, and any other but for one case in 2^64. It is not meant to withstand
 * somebody who wants a collision. The constants are those of splitmix64. */
#ifndef STRATALLOC_CHECKSUM_H
#define STRATALLOC_CHECKSUM_H
#include "portable.h"

DEVICE u64 mixed(u64 word, u64 place) {
    u64 x = word + place * 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

DEVICE u64 word_of_bytes(u64 ptr, u64 bytes) {
    u64 word = 0;
    for (u64 i = 0; i < bytes; i++) word |= (u64)AT(const u8, ptr)[i] << (i * 8);
    return word;
}

/* Adds to what the host has set to 0. */
DEVICE void checksum(struct thread t, u64 ptr, u64 size, u64 *result) {
    u64 words = size / 8, rest = size % 8, sum = 0;
    int aligned = ptr % 8 == 0;
    for (u64 i = t.index; i < words; i += t.count) {
        u64 word = aligned ? AT(const u64, ptr)[i] : word_of_bytes(ptr + i * 8, 8);
        sum += mixed(word, i + 1);
    }
    if (t.index == 0) {
        if (rest > 0) sum += mixed(word_of_bytes(ptr + words * 8, rest), words + 1);
        sum += mixed(size, 0);
    }
    add_of_all(result, sum);
}

#endif

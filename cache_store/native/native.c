/* The two loops of a lookup: users found in the indexes, and rows of pages copied out of a mapped file, checked on
   the way. Called by library.py; the bytes are those of docs/format.md.

   What NumPy cannot do: ask for the next pages ahead of time, write past the caches what is too large to stay in
   them, hash a row while it passes through the registers. */

#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the file's words are little-endian; without this file the store reads through NumPy"
#endif

#define INLINE static inline __attribute__((always_inline))

typedef uint64_t pair __attribute__((vector_size(16)));

#ifdef __SSE2__
#include <emmintrin.h>
#define LOW_TIMES_HIGH(x) ((pair)_mm_mul_epu32((__m128i)(x), (__m128i)((x) >> 32)))
#define STREAM(to, x) _mm_stream_si128((__m128i *)(to), (__m128i)(x))
#define STREAMED() _mm_sfence()
#else
#define LOW_TIMES_HIGH(x) (((x) & 0xFFFFFFFF) * ((x) >> 32))
#define STREAM(to, x) store(to, x)
#define STREAMED()
#endif

enum { MOST = 1 << 26 }; /* numbers in a record; record.py, MAX_RECORD_BYTES */
enum { LMDB = 16, HEADER = 64, LINE = 64, PAGE = 4096 };
enum { PAYLOAD_HASH = 8, KEY = 16, MODEL = 32, FORMAT = 56, RECORD_FORMAT = 1 }; /* in the header; the flags are 0 */
/* As measured: half of AHEAD costs one thread 5 %, twice as much gains nothing; TURN from 4 to 16 is about the same. */
enum { AHEAD = 2 * PAGE, TURN = 8, SOON = 8 };

INLINE pair load(const uint8_t *from) {
    pair x;
    memcpy(&x, from, 16);
    return x;
}

INLINE uint64_t rotated(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

INLINE void store(uint8_t *to, pair x) { memcpy(to, &x, 16); }

INLINE uint64_t word(const uint8_t *from) {
    uint64_t w;
    memcpy(&w, from, 8);
    return w;
}

/* XXH3-64, seed 0, of more than 240 bytes: github.com/Cyan4973/xxHash, doc/xxhash_spec.md. */

#define PRIME32_1 0x9E3779B1U
#define PRIME32_2 0x85EBCA77U
#define PRIME32_3 0xC2B2AE3DU
#define PRIME64_1 0x9E3779B185EBCA87U
#define PRIME64_2 0xC2B2AE3D27D4EB4FU
#define PRIME64_3 0x165667B19E3779F9U
#define PRIME64_4 0x85EBCA77C2B2AE63U
#define PRIME64_5 0x27D4EB2F165667C5U

static const uint64_t SECRET_WORDS[24] = {
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072,
    0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82, 0x8e2443f7744608b8, 0x4c263a81e69035e0,
    0xcb00c391bb52283c, 0xa32e531b8b65d088, 0x4ef90da297486471, 0xd8acdea946ef1938,
    0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a, 0x647378d9c97e9fc8,
    0xc3ebd33483acc5ea, 0xeb6313faffa081c5, 0x49daf0b751dd0d17, 0x9e68d429265516d3,
    0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af};
#define SECRET ((const uint8_t *)SECRET_WORDS)

INLINE void hash_line(pair sums[4], const pair x[4], const uint8_t *key) {
    for (int i = 0; i < 4; i++) {
        pair k = x[i] ^ load(key + 16 * i);
        sums[i] += LOW_TIMES_HIGH(k);
        sums[i] += (pair){x[i][1], x[i][0]};
    }
}

INLINE void scramble(pair sums[4]) {
    const pair prime = {PRIME32_1, PRIME32_1};
    for (int i = 0; i < 4; i++) {
        pair x = sums[i] ^ (sums[i] >> 47) ^ load(SECRET + 128 + 16 * i);
        sums[i] = x * prime;
    }
}

INLINE uint64_t finish(const pair sums[4], uint64_t length) {
    uint64_t h = length * PRIME64_1;
    for (int i = 0; i < 4; i++) {
        unsigned __int128 product = (unsigned __int128)(sums[i][0] ^ word(SECRET + 11 + 16 * i)) *
                                    (sums[i][1] ^ word(SECRET + 19 + 16 * i));
        h += (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    h = (h ^ (h >> 37)) * 0x165667919E3779F9U;
    return h ^ (h >> 32);
}

/* The check word of a header: SplitMix64 over its seven words after the first; record.py, header_check. */
INLINE uint64_t header_check(const uint8_t *header) {
    uint64_t h = 0;
    for (int i = 1; i < 8; i++) {
        uint64_t z = h + word(header + 8 * i) + 0x9E3779B97F4A7C15U;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
        h = z ^ (z >> 31);
    }
    return h;
}

/* Copy one row: LMDB's page header, the record's header, lines of payload, a rest of less than a page.
   Returns the payload's hash if hashed. The two flags are constants where it is called. */
INLINE uint64_t copy_row(const uint8_t *from, const uint8_t *next, int64_t row, int64_t payload, uint8_t *to,
                         int streamed, int hashed) {
    pair sums[4] = {{PRIME32_3, PRIME64_1}, {PRIME64_2, PRIME64_3}, {PRIME64_4, PRIME32_2}, {PRIME64_5, PRIME32_1}};
    const int64_t lines = (payload - 1) / LINE;
    int64_t at = LMDB + HEADER;
    memcpy(to, from, at);
    for (int64_t n = 0; n < lines; n++, at += LINE) {
        pair x[4];
        int64_t ahead = at + AHEAD;
        __builtin_prefetch(ahead < row ? from + ahead : next + (ahead - row), 0, 0);
        for (int i = 0; i < 4; i++) {
            x[i] = load(from + at + 16 * i);
            if (streamed)
                STREAM(to + at + 16 * i, x[i]);
            else
                store(to + at + 16 * i, x[i]);
        }
        if (hashed) {
            hash_line(sums, x, SECRET + 8 * (n % 16));
            if (n % 16 == 15) scramble(sums);
        }
    }
    memcpy(to + at, from + at, row - at);
    if (!hashed) return 0;
    const uint8_t *last = from + LMDB + HEADER + payload - LINE;
    hash_line(sums, (pair[4]){load(last), load(last + 16), load(last + 32), load(last + 48)}, SECRET + 121);
    return finish(sums, payload);
}

INLINE int inside(int64_t start, int64_t row, int64_t size) {
    return start >= 0 && row <= size && start <= size - row && start % PAGE == 0;
}

/* Byte at which the row of a record begins; a place may be any number, so without overflow. */
INLINE int64_t row_of(int64_t place) { return place < LMDB ? -1 : place - LMDB; }

INLINE int64_t take(int64_t *taken) { return __atomic_fetch_add(taken, TURN, __ATOMIC_RELAXED); }

/* Copy rows and judge their records. Threads that call this with one set of arguments share the work: each takes the
   next TURN rows until none are left.

   taken         rows that a thread has taken; 0 at first
   range, size   the mapped bytes
   places, n     of all records: a row begins LMDB bytes before, at a page's beginning; others come out as zeros
   row, payload  bytes of a row, whole pages; and of what is hashed, behind the header: more than 240
   out           n rows
   streamed      write past the caches, if out allows it
   keys, model   what the headers should say
   verified      also compare the header's check and the payload's hash
   headers       HEADER bytes per row
   good          per row: 1 if it holds the record of this user, or 0

   Returns 0; or 1, and nothing is done, where the sizes are none that rows can have.

   The names carry the version of the arguments; library.py asks for them. */
int vista_copy_rows_2(int64_t *taken, const uint8_t *range, int64_t size, const int64_t *places, int64_t n,
                       int64_t row, int64_t payload, uint8_t *out, int streamed, const uint64_t *keys, uint64_t model,
                       int verified, uint8_t *headers, uint8_t *good) {
    if (n < 0 || size < 0 || row < PAGE || row % PAGE || payload <= 240 || payload > row - LMDB - HEADER) return 1;
    streamed = streamed && (uintptr_t)out % 16 == 0;
    /* The next turn is taken before this one is done, so that its first pages can be asked for, too. */
    for (int64_t turn = take(taken), then; turn < n; turn = then) {
        then = take(taken);
        for (int64_t i = turn; i < n && i < turn + TURN; i++) {
            const int64_t following = i + 1 < turn + TURN ? i + 1 : then;
            const int64_t start = row_of(places[i]), after = row_of(places[following < n ? following : i]);
            uint8_t *to = out + i * row, *header = headers + i * HEADER;
            good[i] = 0;
            if (!inside(start, row, size)) {
                memset(to, 0, row);
                memset(header, 0, HEADER);
                continue;
            }
            const uint8_t *from = range + start, *next = inside(after, row, size) ? range + after : from;
            uint64_t hash = 0;
            memcpy(header, from + LMDB, HEADER);
            if (verified)
                hash = streamed ? copy_row(from, next, row, payload, to, 1, 1)
                                : copy_row(from, next, row, payload, to, 0, 1);
            else
                streamed ? copy_row(from, next, row, payload, to, 1, 0) : copy_row(from, next, row, payload, to, 0, 0);
            good[i] = word(header + KEY) == keys[i] && word(header + MODEL) == model &&
                      (uint32_t)word(header + FORMAT) == RECORD_FORMAT &&
                      (!verified || (word(header) == header_check(header) && word(header + PAYLOAD_HASH) == hash));
        }
    }
    if (streamed) STREAMED();
    return 0;
}

/* Where the columns of an index are, in words of all indexes laid end to end. */
typedef struct {
    int64_t directory, shift, entries, hash, second, check, offset;
} Shard;

/* First entry that has a hash's prefix, and the first after it. The columns were checked when the index was opened;
   what its words say may have been altered since. */
INLINE uint64_t first_entry(const uint64_t *words, const Shard *s, uint64_t hash, uint64_t *end) {
    const uint64_t *slot = words + s->directory + (hash >> s->shift), all = s->entries;
    *end = slot[1] < all ? slot[1] : all;
    return slot[0] < *end ? slot[0] : *end;
}

/* Entry of each user in its shard's index, with the check and the offset kept there; -1, 0 and 0 for others. Returns 0,
   or 1 if a prefix has more than `most` entries, as no sound index has, or a user's shard is none of `count`.

   words             of all indexes
   shards, of        of all shards; shard of each user
   hashes, seconds   of each user; seconds is NULL where ids have one hash
   found             3 x n: entries, checks, offsets */
int vista_find_2(const uint64_t *words, const Shard *shards, int64_t count, const int64_t *of, const uint64_t *hashes,
                 const uint64_t *seconds, int64_t n, int64_t most, int64_t *found) {
    uint64_t end;
    for (int64_t i = 0; i < n; i++)
        if (of[i] < 0 || of[i] >= count) return 1;
    for (int64_t i = -2 * SOON; i < n; i++) {
        /* Each step waits for memory: ask for what the users behind will need. */
        if (i + 2 * SOON < n) {
            const Shard *s = shards + of[i + 2 * SOON];
            __builtin_prefetch(words + s->directory + (hashes[i + 2 * SOON] >> s->shift));
        }
        if (i + SOON >= 0 && i + SOON < n) {
            const Shard *s = shards + of[i + SOON];
            const uint64_t *at = words + first_entry(words, s, hashes[i + SOON], &end);
            __builtin_prefetch(at + s->hash);
            __builtin_prefetch(at + s->check);
            __builtin_prefetch(at + s->offset);
        }
        if (i < 0) continue;
        const Shard *s = shards + of[i];
        uint64_t at = first_entry(words, s, hashes[i], &end);
        if (end - at > (uint64_t)most) return 1;
        while (at < end && (words[s->hash + at] != hashes[i] || (seconds && words[s->second + at] != seconds[i]))) at++;
        found[i] = at < end ? (int64_t)at : -1;
        found[n + i] = at < end ? (int64_t)words[s->check + at] : 0;
        found[2 * n + i] = at < end ? (int64_t)words[s->offset + at] : 0;
    }
    return 0;
}

/* XXH64, seed 0, of the eight key bytes of int64 ids; keys.py, hash_of. */
void vista_hash_1(const int64_t *ids, int64_t n, uint64_t *hashes) {
    for (int64_t i = 0; i < n; i++) {
        const uint64_t key = __builtin_bswap64((uint64_t)ids[i] ^ 1ULL << 63);
        uint64_t h = (PRIME64_5 + 8) ^ rotated(key * PRIME64_2, 31) * PRIME64_1;
        h = rotated(h, 27) * PRIME64_1 + PRIME64_4;
        h = (h ^ h >> 33) * PRIME64_2;
        h = (h ^ h >> 29) * PRIME64_3;
        hashes[i] = h ^ h >> 32;
    }
}

/* Tokens of a block of records as float32; quantize.py has the codecs. */

enum Codec { FLOAT16, INT8, LOG8 };

INLINE void decode_16(enum Codec codec, const uint8_t *from, float scale, const float *table, float out[16]) {
    for (int i = 0; i < 16; i++)
        if (codec == FLOAT16) {
            /* Sign and 15 bits to where float32 has them; the multiplication mends the exponent. Exact if finite. */
            int16_t half;
            memcpy(&half, from + 2 * i, 2);
            const uint32_t bits = (uint32_t)half << 13 & 0x8FFFE000U;
            memcpy(out + i, &bits, 4);
            out[i] *= 0x1p112f;
        } else
            out[i] = codec == INT8 ? (int8_t)from[i] * scale : table[from[i]];
}

INLINE void decode_records(enum Codec codec, const uint8_t *from, int64_t step, int64_t n, int64_t tokens,
                           int64_t width, const uint8_t *scales, const float *table, float *out, int64_t out_step,
                           int streamed) {
    const int64_t size = codec == FLOAT16 ? 2 : 1;
    for (int64_t r = 0; r < n; r++, from += step, scales += step, out += out_step)
        for (int64_t t = 0; t < tokens; t++) {
            float scale = 1, values[16];
            if (codec == INT8) memcpy(&scale, scales + 4 * t, 4);
            for (int64_t k = 0; k < width; k += 16) {
                const uint8_t *next = from + (t * width + k) * size;
                uint8_t *to = (uint8_t *)(out + t * width + k), rest[32] = {0};
                if (width - k < 16) {
                    memcpy(rest, next, (width - k) * size);
                    decode_16(codec, rest, scale, table, values);
                    memcpy(to, values, (width - k) * 4);
                    continue;
                }
                decode_16(codec, next, scale, table, values);
                for (int i = 0; i < 64; i += 16) {
                    const pair x = load((uint8_t *)values + i);
                    if (streamed)
                        STREAM(to + i, x);
                    else
                        store(to + i, x);
                }
            }
        }
    if (streamed) STREAMED();
}

/* Decode one group of n records.

   from, step      codes of the first record; bytes from one record to the next
   tokens, width   of the group
   scales          INT8: of the first record's tokens, float32; else not used
   table           LOG8: value of each code; else not used
   out, out_step   tokens of the first record; floats from one record to the next
   streamed        write past the caches, if out allows it

   Returns 0; or 1, and nothing is done, where the sizes are none that a group can have. */
int vista_decode_2(int codec, const uint8_t *from, int64_t step, int64_t n, int64_t tokens, int64_t width,
                    const uint8_t *scales, const float *table, float *out, int64_t out_step, int streamed) {
    if (codec < FLOAT16 || codec > LOG8 || n < 0 || tokens < 1 || width < 1 || tokens > MOST / width) return 1;
    if (n > 1 && (step < tokens * width * (codec == FLOAT16 ? 2 : 1) || out_step < tokens * width)) return 1;
    if ((codec == INT8 && !scales) || (codec == LOG8 && !table)) return 1;
    streamed = streamed && (uintptr_t)out % 16 == 0 && out_step % 4 == 0 && width % 4 == 0;
    if (codec == FLOAT16)
        streamed ? decode_records(FLOAT16, from, step, n, tokens, width, scales, table, out, out_step, 1)
                 : decode_records(FLOAT16, from, step, n, tokens, width, scales, table, out, out_step, 0);
    else if (codec == INT8)
        streamed ? decode_records(INT8, from, step, n, tokens, width, scales, table, out, out_step, 1)
                 : decode_records(INT8, from, step, n, tokens, width, scales, table, out, out_step, 0);
    else
        decode_records(LOG8, from, step, n, tokens, width, scales, table, out, out_step, streamed);
    return 0;
}

// AMX tiles: eight registers of up to 16 rows x 64 bytes and the products between them. Included inside an ISA namespace by isa_amx.cpp.
//
// In assembly of our own: some compilers' intrinsics let stores to the configuration, or to what a tile is loaded from, move behind the
// instruction. With OPENGLM_EMULATED_TILES each instruction is instead what Intel's manual says it does, bit for bit, so that tests can
// run the kernels on a processor without tiles.

struct alignas(64) TileConfig {  // palette 1, as `ldtilecfg` reads it
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

constexpr int kAmxRows = 16;   // of any tile
constexpr int kAmxBytes = 64;  // of a row

#ifndef OPENGLM_EMULATED_TILES

inline void configure_tiles(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory"); }
inline void release_tiles() { __asm__ volatile("tilerelease" : : : "memory"); }
template <int T>
inline void tile_zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(T));
}
template <int T>
inline void tile_load(const void* p, size_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void* p, size_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(T) : "memory");
}
// C += A @ B over bf16 pairs, or over four codes: those of A without sign, those of B with.
template <bool kCodes, int C, int A, int B>
inline void tile_multiply() {
    if constexpr (kCodes) __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
    else __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#else

struct Tiles {
    bool configured = false;
    TileConfig config;
    alignas(64) uint8_t data[8][kAmxRows][kAmxBytes];
};
inline thread_local Tiles tiles;

// What would be a fault or quietly wrong on a processor ends the process.
inline void expect(bool holds) {
    if (!holds) __builtin_trap();
}

inline void configure_tiles(const TileConfig& config) {
    expect(config.palette == 1 && config.start_row == 0);
    for (uint8_t byte : config.reserved) expect(byte == 0);
    for (int t = 0; t < 16; t++) {
        expect(config.row_bytes[t] <= kAmxBytes && config.rows[t] <= kAmxRows && (config.rows[t] == 0) == (config.row_bytes[t] == 0));
        expect(t < 8 || config.rows[t] == 0);
    }
    tiles.configured = true;
    tiles.config = config;
    std::memset(tiles.data, 0, sizeof tiles.data);
}
inline void release_tiles() { tiles.configured = false; }
inline void expect_tile(int t) { expect(tiles.configured && tiles.config.rows[t] > 0); }

template <int T>
inline void tile_zero() {
    expect_tile(T);
    std::memset(tiles.data[T], 0, sizeof tiles.data[T]);
}
template <int T>
inline void tile_load(const void* p, size_t stride) {
    tile_zero<T>();
    for (int m = 0; m < tiles.config.rows[T]; m++)
        std::memcpy(tiles.data[T][m], static_cast<const char*>(p) + m * stride, tiles.config.row_bytes[T]);
}
template <int T>
inline void tile_store(void* p, size_t stride) {
    expect_tile(T);
    for (int m = 0; m < tiles.config.rows[T]; m++) std::memcpy(static_cast<char*>(p) + m * stride, tiles.data[T][m], tiles.config.row_bytes[T]);
}

// One row of C in whole numbers.
inline __m512i multiply_row_of_codes(__m512i sum, const uint8_t* a, const uint8_t (*b)[kAmxBytes], int units) {
    alignas(64) int32_t sums[16];
    _mm512_store_si512(sums, sum);
    for (int k = 0; k < units; k++)
        for (int n = 0; n < 16; n++)
            for (int i = 0; i < 4; i++) sums[n] += a[4 * k + i] * static_cast<int8_t>(b[k][4 * n + i]);
    return _mm512_load_si512(sums);
}

// One row of C in fp32: first and second elements of the pairs are summed apart, by fused multiply-adds from first to last; both sums are
// added, and then C. Subnormal numbers are zeros, read or written, and rounding is to nearest, whatever the thread's mode. The arithmetic
// is in assembly because the compiler would move it across the change of mode.
inline __m512 multiply_row_of_pairs(__m512 sum, const uint8_t* a, const uint8_t (*b)[kAmxBytes], int units) {
    const unsigned before = _mm_getcsr(), zeros = 0x9FC0;  // all exceptions masked, FTZ and DAZ
    __m512 first = _mm512_setzero_ps(), second = first;
    __asm__ volatile("vldmxcsr %0" : : "m"(zeros));
    for (int k = 0; k < units; k++) {
        uint32_t pair;
        std::memcpy(&pair, a + 4 * k, 4);
        const __m512i x = _mm512_set1_epi32(static_cast<int>(pair)), w = _mm512_load_si512(b[k]), high = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
        const __m512i x1 = _mm512_slli_epi32(x, 16), w1 = _mm512_slli_epi32(w, 16), x2 = _mm512_and_si512(x, high), w2 = _mm512_and_si512(w, high);
        __asm__ volatile("vfmadd231ps %1, %2, %0" : "+v"(first) : "v"(x1), "v"(w1));
        __asm__ volatile("vfmadd231ps %1, %2, %0" : "+v"(second) : "v"(x2), "v"(w2));
    }
    __asm__ volatile("vaddps %1, %0, %0" : "+v"(first) : "v"(second));
    __asm__ volatile("vaddps %1, %0, %0" : "+v"(sum) : "v"(first));
    __asm__ volatile("vldmxcsr %0" : : "m"(before));
    return sum;
}

template <bool kCodes, int C, int A, int B>
inline void tile_multiply() {
    for (int t : {C, A, B}) expect_tile(t);
    const TileConfig& shape = tiles.config;
    expect(shape.rows[A] == shape.rows[C] && shape.row_bytes[A] == 4 * shape.rows[B] && shape.row_bytes[B] == shape.row_bytes[C]);
    for (int m = 0; m < shape.rows[C]; m++) {
        const int units = shape.row_bytes[A] / 4;
        const __m512i sum = _mm512_load_si512(tiles.data[C][m]);
        __m512i all;
        if constexpr (kCodes) all = multiply_row_of_codes(sum, tiles.data[A][m], tiles.data[B], units);
        else all = _mm512_castps_si512(multiply_row_of_pairs(_mm512_castsi512_ps(sum), tiles.data[A][m], tiles.data[B], units));
        std::memset(tiles.data[C][m], 0, kAmxBytes);
        std::memcpy(tiles.data[C][m], &all, shape.row_bytes[C]);
    }
}

#endif

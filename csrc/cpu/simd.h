// Sixteen floats as one value, on AVX-512 (one register) or AVX2 (two). Included inside an ISA namespace by isa_*.cpp,
// under that file's `#pragma GCC target`; everything above it is written once against this type.
//
// Every operation acts on each lane alone, and reductions have one fixed order, so what a row yields never depends on
// where in a batch it stands.
#if !defined(OPENGLM_ISA_AVX512) && !defined(OPENGLM_ISA_AVX2)
#error "include simd.h through isa_avx512.cpp or isa_avx2.cpp"
#endif

#ifdef OPENGLM_ISA_AVX512

struct vec {
    __m512 v;
};
inline vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, vec a) { _mm512_storeu_ps(p, a.v); }
inline vec set1(float x) { return {_mm512_set1_ps(x)}; }
inline vec zero() { return {_mm512_setzero_ps()}; }
inline vec fma(vec a, vec b, vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline vec add(vec a, vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline vec sub(vec a, vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline vec mul(vec a, vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline vec div(vec a, vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline vec maximum(vec a, vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline vec minimum(vec a, vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline vec round_nearest(vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// a * 2^n for whole n in the range of normal numbers.
inline vec scale_by_power(vec a, vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
// b where a < limit, else c.
inline vec select_less(vec a, vec limit, vec b, vec c) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, limit.v, _CMP_LT_OQ), c.v, b.v)};
}
// Lanes whose index is below `count` keep a, others become b.
inline vec keep_first(vec a, int count, vec b) {
    __mmask16 mask = count >= 16 ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
    return {_mm512_mask_blend_ps(mask, b.v, a.v)};
}
inline vec load_bf16(const uint16_t* p) {
    __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
// The nearest bf16, ties to even, in the upper half of each place, with anything below it; NaN stays NaN because a quiet bit is set.
inline __m512i rounded_to_bf16(vec a) {
    const __m512i bits = _mm512_castps_si512(a.v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    return _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7FC00000));
}
inline void store_bf16(uint16_t* p, vec a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_to_bf16(a), 16)));
}
// Thirty-two bf16 as sixteen pairs: the first of each pair, and the second.
struct pairs {
    __m512i v;
};
inline pairs load_pairs(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
// Thirty-two e4m3 codes as bf16. Exponents differ by a bias of 120; the eight magnitudes below the smallest normal are looked up.
inline pairs load_pairs_fp8(const uint8_t* p) {
    const __m512i codes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const __m512i magnitude = _mm512_and_si512(_mm512_slli_epi16(codes, 4), _mm512_set1_epi16(0x7F0));
    const __m512i small = _mm512_broadcast_i32x4(_mm_setr_epi16(0x0000, 0x3B00, 0x3B80, 0x3BC0, 0x3C00, 0x3C20, 0x3C40, 0x3C60));
    __m512i bits = _mm512_add_epi16(magnitude, _mm512_set1_epi16(0x3C00));
    bits = _mm512_mask_permutexvar_epi16(bits, _mm512_cmplt_epi16_mask(magnitude, _mm512_set1_epi16(0x80)), codes, small);
    const __mmask32 nan = _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7F0));
    bits = _mm512_mask_mov_epi16(bits, nan, _mm512_set1_epi16(0x7FC0));
    return {_mm512_ternarylogic_epi32(bits, _mm512_slli_epi16(codes, 8), _mm512_set1_epi16(static_cast<short>(0x8000)), 0xF8)};  // a | (b & c)
}
#ifdef OPENGLM_ISA_BF16
// Sixty-four e4m3 codes: the two bytes of each are looked up, by seven bits, in tables of 128 that the compiler keeps in registers.
struct Fp8Tables {
    uint8_t low[128], high[128];
};
constexpr Fp8Tables fp8_tables() {
    Fp8Tables t{};
    for (int code = 0; code < 128; code++) {
        int bits = (code << 4) + 0x3C00;  // exponents differ by a bias of 120
        if (code < 8) {                   // multiples of 2^-9
            bits = 0;
            for (int top = 2; top >= 0; top--)
                if (bits == 0 && code >> top) bits = (127 - 9 + top) << 7 | (code << (7 - top) & 0x7F);
        }
        if (code == 127) bits = 0x7FC0;
        t.low[code] = static_cast<uint8_t>(bits & 0xFF);
        t.high[code] = static_cast<uint8_t>(bits >> 8);
    }
    return t;
}
alignas(64) constexpr Fp8Tables kFp8Tables = fp8_tables();
struct two_pairs {
    pairs first, second;
};
inline two_pairs load_two_pairs_fp8(const uint8_t* p) {
    // Interleaving works within lanes of sixteen bytes, so each lane first gets the eight codes of both halves that belong there.
    const __m512i codes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), _mm512_loadu_si512(p));
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kFp8Tables.low), codes, _mm512_load_si512(kFp8Tables.low + 64));
    const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(kFp8Tables.high), codes, _mm512_load_si512(kFp8Tables.high + 64));
    const __m512i signed_high = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8(static_cast<char>(0x80)), 0xF8);  // a | (b & c)
    return {{_mm512_unpacklo_epi8(low, signed_high)}, {_mm512_unpackhi_epi8(low, signed_high)}};
}
// Four bytes, two bf16 or four codes, in every place.
inline __m512 broadcast_four(const void* p) {
    int four;
    std::memcpy(&four, p, 4);
    return _mm512_castsi512_ps(_mm512_set1_epi32(four));
}
// sum + products of two bf16 pairs, or of four codes (of `x` without sign), in each place. In place, which compilers do not reliably make of the
// intrinsics: two dozen sums leave no register for copies.
template <bool kCodes>
inline __m512 multiply_added(__m512 sum, __m512 weight, __m512 x) {
    if constexpr (kCodes) __asm__("vpdpbusd %1, %2, %0" : "+v"(sum) : "v"(weight), "v"(x));
    else __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(x));
    return sum;
}
#endif
inline vec computed(vec a) {  // of which the compiler cannot know the value
    __asm__ volatile("" : "+v"(a.v));
    return a;
}
// Thirty-two signed bytes as bf16, which has just enough bits for them.
inline pairs load_pairs_int8(const int8_t* p) {
#ifdef OPENGLM_ISA_BF16
    const auto* q = reinterpret_cast<const __m128i*>(p);
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q + 1)));
    return {(__m512i)_mm512_cvtne2ps_pbh(high, low)};
#else
    const __m512i words = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const __m512 second = _mm512_cvtepi32_ps(_mm512_srai_epi32(words, 16));
    const __m512 first = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(words, 16), 16));
    return {_mm512_or_si512(_mm512_castps_si512(second), _mm512_srli_epi32(_mm512_castps_si512(first), 16))};
#endif
}
inline vec first_of(pairs w) { return {_mm512_castsi512_ps(_mm512_slli_epi32(w.v, 16))}; }
inline vec second_of(pairs w) { return {_mm512_castsi512_ps(_mm512_and_si512(w.v, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))))}; }

// A word of eight 4-bit codes for each of sixteen columns, in the order of int4 weights; the next pair of codes comes with each `advance`.
struct nibbles {
    __m512i v;
};
inline nibbles load_nibbles(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
inline nibbles advance(nibbles w) { return {_mm512_srli_epi32(w.v, 4)}; }
// The pair as bf16. The look-up takes five bits of a word, so a table of sixteen is there twice.
inline pairs pairs_of(nibbles w) {
    const __m512i table = _mm512_broadcast_i64x4(_mm256_setr_epi16(0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0, 0x4100, 0x4110,
                                                                   0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170));
    return {_mm512_permutexvar_epi16(w.v, table)};
}
inline vec first_of(nibbles w) {
    return {_mm512_permutexvar_ps(w.v, _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))};
}
inline vec second_of(nibbles w) { return first_of(nibbles{_mm512_srli_epi32(w.v, 16)}); }

// Sixteen whole numbers, and sums of four products of int8 numbers each, without rounding or overflow.
struct ivec {
    __m512i v;
};
inline ivec load_whole(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline ivec whole_zero() { return {_mm512_setzero_si512()}; }
inline ivec sub(ivec a, ivec b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline ivec times_128(ivec a) { return {_mm512_slli_epi32(a.v, 7)}; }
inline vec to_float(ivec a) { return {_mm512_cvtepi32_ps(a.v)}; }
// Four int8 codes of each of sixteen columns, in the form in which they are multiplied.
#ifdef OPENGLM_ISA_BF16  // which comes with VNNI
constexpr int kCodeOffset = 128;  // what is added to the codes of activations: the instruction takes one operand without sign
struct quads {
    __m512i v;
};
inline quads load_quads(const int8_t* p) { return {_mm512_loadu_si512(p)}; }
inline ivec dot(quads w, int32_t x, ivec sum) {
    return {_mm512_castps_si512(multiply_added<true>(_mm512_castsi512_ps(sum.v), _mm512_castsi512_ps(w.v), _mm512_castsi512_ps(_mm512_set1_epi32(x))))};
}
#else
constexpr int kCodeOffset = 0;
struct quads {  // bytes 0 and 2, bytes 1 and 3 of each column
    __m512i even, odd;
};
inline quads load_quads(const int8_t* p) {
    const __m512i w = _mm512_loadu_si512(p);
    return {_mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8), _mm512_srai_epi16(w, 8)};
}
inline ivec dot(quads w, int32_t x, ivec sum) {
    const __m512i all = _mm512_set1_epi32(x);
    const __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(all, 8), 8), odd = _mm512_srai_epi16(all, 8);
    return {_mm512_add_epi32(sum.v, _mm512_add_epi32(_mm512_madd_epi16(w.even, even), _mm512_madd_epi16(w.odd, odd)))};
}
#endif
// The nearest whole numbers of values within +-127, as bytes.
inline void store_codes(int8_t* p, vec a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

#else  // AVX2 and FMA

struct vec {
    __m256 lo, hi;
};
inline vec computed(vec a) {  // of which the compiler cannot know the value
    __asm__ volatile("" : "+x"(a.lo), "+x"(a.hi));
    return a;
}
inline vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, vec a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
inline vec set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline vec fma(vec a, vec b, vec c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline vec add(vec a, vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline vec sub(vec a, vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline vec mul(vec a, vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline vec div(vec a, vec b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline vec maximum(vec a, vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline vec minimum(vec a, vec b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline vec round_nearest(vec a) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
inline __m256 scale_half(__m256 a, __m256 n) {
    __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(a, _mm256_castsi256_ps(bits));
}
inline vec scale_by_power(vec a, vec n) { return {scale_half(a.lo, n.lo), scale_half(a.hi, n.hi)}; }
inline vec select_less(vec a, vec limit, vec b, vec c) {
    return {_mm256_blendv_ps(c.lo, b.lo, _mm256_cmp_ps(a.lo, limit.lo, _CMP_LT_OQ)),
            _mm256_blendv_ps(c.hi, b.hi, _mm256_cmp_ps(a.hi, limit.hi, _CMP_LT_OQ))};
}
inline __m256 keep_half(__m256 a, int count, __m256 b) {
    __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), index)));
}
inline vec keep_first(vec a, int count, vec b) { return {keep_half(a.lo, count, b.lo), keep_half(a.hi, count - 8, b.hi)}; }
inline __m256 widen(__m128i half) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)); }
inline vec load_bf16(const uint16_t* p) {
    const auto* q = reinterpret_cast<const __m128i*>(p);
    return {widen(_mm_loadu_si128(q)), widen(_mm_loadu_si128(q + 1))};
}
inline __m128i narrow(__m256 a) {
    __m256i bits = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC0), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}
inline void store_bf16(uint16_t* p, vec a) {
    auto* q = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(q, narrow(a.lo));
    _mm_storeu_si128(q + 1, narrow(a.hi));
}
struct pairs {
    __m256i lo, hi;
};
inline pairs load_pairs(const uint16_t* p) {
    const auto* q = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline __m256i fp8_half(__m128i p) {
    const __m256i codes = _mm256_cvtepu8_epi16(p);
    const __m256i magnitude = _mm256_and_si256(_mm256_slli_epi16(codes, 4), _mm256_set1_epi16(0x7F0));
    const __m256i small = _mm256_broadcastsi128_si256(_mm_setr_epi16(0x0000, 0x3B00, 0x3B80, 0x3BC0, 0x3C00, 0x3C20, 0x3C40, 0x3C60));
    const __m256i place = _mm256_add_epi16(_mm256_mullo_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(7)), _mm256_set1_epi16(0x0202)),
                                           _mm256_set1_epi16(0x0100));
    const __m256i is_small = _mm256_cmpgt_epi16(_mm256_set1_epi16(0x80), magnitude);
    __m256i bits = _mm256_add_epi16(magnitude, _mm256_set1_epi16(0x3C00));
    bits = _mm256_blendv_epi8(bits, _mm256_shuffle_epi8(small, place), is_small);
    bits = _mm256_blendv_epi8(bits, _mm256_set1_epi16(0x7FC0), _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7F0)));
    return _mm256_or_si256(bits, _mm256_and_si256(_mm256_slli_epi16(codes, 8), _mm256_set1_epi16(static_cast<short>(0x8000))));
}
inline pairs load_pairs_fp8(const uint8_t* p) {
    const auto* q = reinterpret_cast<const __m128i*>(p);
    return {fp8_half(_mm_loadu_si128(q)), fp8_half(_mm_loadu_si128(q + 1))};
}
inline __m256i int8_half(__m128i p) {
    const __m256i words = _mm256_cvtepi8_epi16(p);
    const __m256 second = _mm256_cvtepi32_ps(_mm256_srai_epi32(words, 16));
    const __m256 first = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(words, 16), 16));
    return _mm256_or_si256(_mm256_castps_si256(second), _mm256_srli_epi32(_mm256_castps_si256(first), 16));
}
inline pairs load_pairs_int8(const int8_t* p) {
    const auto* q = reinterpret_cast<const __m128i*>(p);
    return {int8_half(_mm_loadu_si128(q)), int8_half(_mm_loadu_si128(q + 1))};
}
inline vec first_of(pairs w) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(w.lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(w.hi, 16))};
}
inline vec second_of(pairs w) {
    __m256i mask = _mm256_set1_epi32(static_cast<int>(0xFFFF0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(w.lo, mask)), _mm256_castsi256_ps(_mm256_and_si256(w.hi, mask))};
}

struct nibbles {
    __m256i lo, hi;
};
inline nibbles load_nibbles(const uint32_t* p) {
    const auto* q = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline nibbles advance(nibbles w) { return {_mm256_srli_epi32(w.lo, 4), _mm256_srli_epi32(w.hi, 4)}; }
inline vec first_of(nibbles w) {
    const __m256i mask = _mm256_set1_epi32(15);
    return {_mm256_cvtepi32_ps(_mm256_and_si256(w.lo, mask)), _mm256_cvtepi32_ps(_mm256_and_si256(w.hi, mask))};
}
inline vec second_of(nibbles w) { return first_of(nibbles{_mm256_srli_epi32(w.lo, 16), _mm256_srli_epi32(w.hi, 16)}); }

struct ivec {
    __m256i lo, hi;
};
inline ivec load_whole(const int32_t* p) {
    const auto* q = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline ivec whole_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline ivec sub(ivec a, ivec b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
inline ivec times_128(ivec a) { return {_mm256_slli_epi32(a.lo, 7), _mm256_slli_epi32(a.hi, 7)}; }
inline vec to_float(ivec a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
constexpr int kCodeOffset = 0;
inline __m256i even_bytes(__m256i a) { return _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8); }
inline __m256i odd_bytes(__m256i a) { return _mm256_srai_epi16(a, 8); }
struct quads {  // bytes 0 and 2, bytes 1 and 3 of each column
    __m256i even_lo, odd_lo, even_hi, odd_hi;
};
inline quads load_quads(const int8_t* p) {
    const auto* q = reinterpret_cast<const __m256i*>(p);
    const __m256i lo = _mm256_loadu_si256(q), hi = _mm256_loadu_si256(q + 1);
    return {even_bytes(lo), odd_bytes(lo), even_bytes(hi), odd_bytes(hi)};
}
inline ivec dot(quads w, int32_t x, ivec sum) {
    const __m256i all = _mm256_set1_epi32(x), even = even_bytes(all), odd = odd_bytes(all);
    return {_mm256_add_epi32(sum.lo, _mm256_add_epi32(_mm256_madd_epi16(w.even_lo, even), _mm256_madd_epi16(w.odd_lo, odd))),
            _mm256_add_epi32(sum.hi, _mm256_add_epi32(_mm256_madd_epi16(w.even_hi, even), _mm256_madd_epi16(w.odd_hi, odd)))};
}
inline void store_codes(int8_t* p, vec a) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));  // lo 0-3, hi 0-3, lo 4-7, hi 4-7
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
}

#endif

// Reductions fold the upper half onto the lower one until one lane is left, the same tree on both.
#ifdef OPENGLM_ISA_AVX512
inline __m256 low_half(vec a) { return _mm512_castps512_ps256(a.v); }
inline __m256 high_half(vec a) { return _mm512_extractf32x8_ps(a.v, 1); }
#else
inline __m256 low_half(vec a) { return a.lo; }
inline __m256 high_half(vec a) { return a.hi; }
#endif
inline float sum_of(vec a) {
    const __m256 eight = _mm256_add_ps(low_half(a), high_half(a));
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float max_of(vec a) {
    const __m256 eight = _mm256_max_ps(low_half(a), high_half(a));
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

// e^x, relative error below 2e-7; exactly 0 below -87 (so for -infinity too), clamped above 88, NaN for NaN (minimum and maximum
// return their second operand then). Degree-6 polynomial after
// range reduction by ln 2 in two parts (Cody and Waite).
inline vec exponential(vec x) {
    const vec lowest = set1(-87.0f);
    vec y = minimum(set1(88.0f), maximum(lowest, x));
    vec n = round_nearest(mul(y, set1(1.44269504088896341f)));
    vec r = fma(n, set1(-0.693359375f), y);
    r = fma(n, set1(2.12194440e-4f), r);
    vec p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = fma(p, mul(r, r), add(r, set1(1.0f)));
    return select_less(x, lowest, zero(), scale_by_power(p, n));
}
inline vec sigmoid(vec x) { return div(set1(1.0f), add(set1(1.0f), exponential(sub(zero(), x)))); }

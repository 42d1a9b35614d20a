// The kernels for AVX-512; see simd.h for how one source serves every instruction set.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
#define OPENGLM_ISA_AVX512

namespace openglm {
namespace avx512 {
#include "simd.h"
#include "gemm.inc"
#include "moe.inc"
#include "attention.inc"
#include "layer.inc"
#include "mtp.inc"
}  // namespace avx512

const Kernels* avx512_kernels() {
    static const Kernels table{"avx512",       avx512::linear,         avx512::linear_f32, avx512::mlp, avx512::moe,
                               avx512::multiply_registers, avx512::rms_norm, avx512::rope_and_write, avx512::attention,  avx512::highest, avx512::decoder_layer, avx512::trunk,
                               avx512::mtp_write_kv, avx512::mtp_draft};
    return &table;
}
}  // namespace openglm
#else
const openglm::Kernels* openglm::avx512_kernels() { return nullptr; }
#endif

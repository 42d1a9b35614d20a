// The kernels for AVX-512 with bf16 products and VNNI; see simd.h for how one source serves every instruction set.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx512vbmi")
#define OPENGLM_ISA_AVX512
#define OPENGLM_ISA_BF16

namespace openglm {
namespace avx512_bf16 {
#include "simd.h"
#include "gemm.inc"
#include "moe.inc"
#include "attention.inc"
#include "layer.inc"
#include "mtp.inc"
}  // namespace avx512_bf16

const Kernels* avx512_bf16_kernels() {
    static const Kernels table{"avx512_bf16",       avx512_bf16::linear,         avx512_bf16::linear_f32, avx512_bf16::mlp, avx512_bf16::moe,
                               avx512_bf16::multiply_registers, avx512_bf16::rms_norm, avx512_bf16::rope_and_write, avx512_bf16::attention,  avx512_bf16::highest, avx512_bf16::decoder_layer, avx512_bf16::trunk,
                               avx512_bf16::mtp_write_kv, avx512_bf16::mtp_draft};
    return &table;
}
}  // namespace openglm
#else
const openglm::Kernels* openglm::avx512_bf16_kernels() { return nullptr; }
#endif

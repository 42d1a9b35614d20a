// What the kernels work on, and the table through which the Python module reaches the set of kernels that fits this processor.
//
// Shape legend: T tokens, H hidden, K input width, N output width, E experts, M expert width, D head dim.
// Activations are fp32 or bf16; sums are fp32 and run over K from first to last for every output element (in AMX tiles by 32 at a time, even
// and odd places apart), whatever the number of rows. That alone makes a row's result independent of its company, so batching, chunking and drafts change no bit.
#pragma once
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace openglm {

// fp8 (e4m3) in KV pages and weights, the rest below in weights only. fp8, int8 and int4 codes are exact in bf16, so their products are
// those of bf16 weights. With w8a8 the activations become int8 as well, a scale for each row, and the sums are whole numbers.
enum class DType : int { f32 = 0, bf16 = 1, fp8 = 2, int8 = 3, int4 = 4, w8a8 = 5 };

// The nearest e4m3 code (ties to even) of a value within +-448; NaN for NaN.
inline uint8_t to_fp8(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint8_t sign = static_cast<uint8_t>(bits >> 24 & 0x80);
    const float magnitude = std::fabs(x);
    if (!(magnitude <= 448.0f)) return sign | (magnitude > 448.0f ? 0x7E : 0x7F);
    if (magnitude < 0.015625f)  // below the smallest normal: multiples of 2^-9
        return sign | static_cast<uint8_t>(std::nearbyintf(magnitude * 512.0f));
    const uint32_t rounded = (bits & 0x7FFFFFFF) + 0x7FFFF + (bits >> 20 & 1);
    return sign | static_cast<uint8_t>((rounded >> 20) - ((127 - 7) << 3));
}

constexpr int kPanel = 16;     // output columns side by side in a packed weight
constexpr int kPageSize = 64;  // token slots of a KV page

constexpr int kGroup = 128;    // inputs that share a step and a lowest value in int4

struct Slab;
struct WeightMemory {  // one block of it, from allocate_weight
    void* data;
    Slab* slab;
    size_t bytes;
};

// A weight [N, K], packed by panels of 16 output columns, zeros as padding:
//   f32           [N/16][K][16]
//   bf16, fp8, int8  [N/16][K/2][16][2]
//   w8a8          [N/16][K/4][16][4]
//   int4          [N/16][K/8][16] words of eight codes: even inputs in the low half, odd ones in the high half, the first lowest
// 8-bit weights have a scale for every output column, by which its finished sum is multiplied. int4 weights are low + step * code.
struct Linear {
    DType dtype;
    int n, k;             // true sizes
    int panels;           // ceil(n / 16)
    int k_padded;         // k rounded up to 2; with int4 and w8a8 to 8
    int num_groups;       // of int4: ceil(k_padded / 128)
    void* data;
    float* bias;          // [panels * 16], or null
    float* scale;         // [panels * 16], or null
    uint16_t* groups;     // of int4: bf16 [panels][num_groups][step, low][16]
    int32_t* code_sums;   // of w8a8: [panels * 16], sums of codes over K
    WeightMemory blocks[4];
};

// Routed and shared experts of one layer. `gate`, `up`, `down` have num_experts entries, and one more for the shared expert.
struct Experts {
    int num_experts, top_k;
    bool has_shared, normalise;
    float scaling;
    Linear* router;   // [E, H] fp32
    float* bias;      // [E]: steers the choice only
    Linear **gate, **up, **down;
    mutable int64_t steps, hits;  // calls so far, and routed experts with tokens in them, all calls together
};

// One layer's KV pages: [pages, 2, kv_heads, 64, D]; in fp8 with a scale for every vector, [pages, 2, kv_heads, 64].
struct Pages {
    void* data;
    float* scales;
    DType dtype;
    int kv_heads, head_dim;
};

// A decoder layer. Norm weights are in the activations' dtype and belong to the caller.
struct Layer {
    int hidden, q_heads, rotary_dim;
    float eps, scale;
    const void *input_norm, *post_norm;
    const void *q_norm, *k_norm;  // null without QK norm
    Linear *qkv, *o;
    Linear *gate, *up, *down;  // null with experts
    Experts* experts;          // null in a dense layer
};

// All decoder layers with embedding and final norm. Embedding, norm and RoPE table [positions, rotary_dim] belong to the caller.
struct Trunk {
    const void *embedding, *norm;
    const float* rope;
    const Layer* const* layers;
    int num_layers;
};

struct AttentionBatch {
    int requests;
    const int64_t* query_starts;  // [R + 1]
    const int64_t* kv_lengths;    // [R], this step's tokens included
    const int64_t* page_table;    // row r starts at r * table_stride
    int64_t table_stride;
};

// The MTP layer. Embedding, norms and RoPE table [positions, rotary_dim] belong to the caller.
struct Mtp {
    const void *embedding, *enorm, *hnorm, *norm;
    const float* rope;
    Linear *eh, *head;
    const Layer* layer;
};

struct Kernels {
    const char* name;
    // out [rows, n] = x [rows, k] @ weight.T + bias (+ residual); x, out and residual share `dtype` and are dense.
    void (*linear)(const Linear&, const void* x, int rows, const void* residual, void* out, DType dtype);
    // The same with fp32 output, for logits.
    void (*linear_f32)(const Linear&, const void* x, int rows, float* out, DType dtype);
    // silu(x @ gate.T) * (x @ up.T), then @ down.T (+ residual): the gated MLP.
    void (*mlp)(const Linear& gate, const Linear& up, const Linear& down, const void* x, int rows, const void* residual, void* out, DType);
    // The whole mixture of experts (+ residual).
    void (*moe)(const Experts&, const void* x, int rows, const void* residual, void* out, DType dtype);
    // Register-only multiply-adds, to measure the ceiling; see gemm.inc.
    float (*multiply_registers)(int64_t steps, DType weight, DType activation);
    void (*rms_norm)(const void* x, const void* weight, float eps, int rows, int width, void* out, DType dtype);
    // qkv [T, (Hq + 2 Hkv) D] -> q [T, Hq, D] normed and turned; k (normed, turned) and v go to their slots. rope [T, 2, rotary_dim / 2]
    // holds the cosines and sines of each token's position.
    void (*rope_and_write)(const void* qkv, int tokens, int q_heads, const void* q_norm, const void* k_norm, float eps, const float* rope,
                           int rotary_dim, const int64_t* slots, const Pages&, void* q_out, DType dtype);
    // q [T, Hq, D] -> [T, Hq, D]: causal attention of each request's rows over its pages.
    void (*attention)(const void* q, int q_heads, const Pages&, const AttentionBatch&, float scale, void* out, DType dtype);
    // values[row], places[row]: the largest of x[row * stride .. + n) and its first place; NaN if there is one.
    void (*highest)(const float* x, int rows, int64_t stride, int n, float* values, int64_t* places);
    // x [T, H] becomes the layer's output, in place.
    void (*decoder_layer)(const Layer&, void* x, int tokens, const float* rope, const int64_t* slots, const Pages&, const AttentionBatch&, DType);
    // tokens [T] at positions [T] -> hidden states [T, H] after the final norm; `pages` has an entry for every layer.
    void (*trunk)(const Trunk&, const int64_t* tokens, int count, const int64_t* positions, const int64_t* slots, const Pages* pages,
                  const AttentionBatch&, void* out, DType dtype);
    // Stores the MTP layer's KV of hidden [T, H] and the tokens behind them; see mtp.inc.
    void (*mtp_write_kv)(const Mtp&, const int64_t* tokens, const void* hidden, int rows, const int64_t* positions, const int64_t* slots,
                         const Pages&, DType);
    // KV entries of what several sequences settled, and a chain of drafts for each; see mtp.inc.
    void (*mtp_draft)(const Mtp&, const int64_t* tokens, const void* hidden, int sequences, const int64_t* first_rows, const int64_t* counts,
                      const int64_t* positions, const int64_t* depths, int num_tokens, const Pages&, const int64_t* page_table,
                      int64_t table_stride, int64_t* drafted, float* logits_of, DType);
};

const Kernels* amx_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_bf16_kernels();
const Kernels* avx2_kernels();

// Runs fn(context, i) for i in [0, count) on the pool; the caller takes part and returns when all are done.
void run_parallel(int count, void (*fn)(void*, int), void* context);
void set_num_threads(int count);
int num_threads();

template <class F>
void parallel_for(int count, bool worth_sharing, F&& body) {
    if (!worth_sharing) {
        for (int i = 0; i < count; i++) body(i);
        return;
    }
    run_parallel(count, [](void* context, int i) { (*static_cast<F*>(context))(i); }, &body);
}

template <class F>
void parallel_for(int count, F&& body) {
    parallel_for(count, true, static_cast<F&&>(body));
}

// Reads every byte once, with all threads; returns something of the result. For the ceiling that benchmarks compare with.
uint64_t read_memory(const void* p, size_t bytes);

// 64-byte aligned memory, on huge pages where it is large; zeroed. Freed with the size it was asked for with.
void* allocate_aligned(size_t bytes);
void free_aligned(void* p, size_t bytes);
// The same for what stays: blocks side by side on shared huge pages. `data` is null when memory is out.
WeightMemory allocate_weight(size_t bytes);
void free_weight(const WeightMemory& block);

// A packed weight without rows yet, to be filled by pack_rows; null when memory is out.
Linear* new_linear(int n, int k, DType dtype);
bool set_bias(Linear& w, const float* bias);
void free_linear(Linear* w);
size_t linear_bytes(const Linear& w);
// Rounds `count` rows [count, k] of `source` to the weight's format and stores them from row `first` on, with all threads if `shared`.
// False when the format is bf16 and would lose bits. `scales` [count] or null: rows of an 8-bit weight are divided by them, by default
// by the ones that make each row's largest element 448 (fp8) or 127 (int8, w8a8). A source in fp8 holds codes that an fp8 weight
// takes over, with their scales.
bool pack_rows(Linear& w, int first, int count, const void* source, DType dtype, const float* scales, bool shared);
// Rounds all rows of a weight in fp32 or bf16, without its bias, into one of the same size in another format, with all threads. False
// where they do not fit.
bool pack_again(Linear& w, const Linear& source);

}  // namespace openglm

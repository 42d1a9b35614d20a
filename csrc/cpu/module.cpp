// The Python module `openglm.ops.cpu._native`: holds packed weights and runs kernels on addresses. Owns no maths and knows no torch:
// `openglm.ops.cpu` checks every tensor (dtype, contiguity, sizes) and passes its address, so this builds in seconds with a C++
// compiler alone and runs under every version of torch.
#include "arguments.h"

#include <chrono>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace openglm {
namespace {

const Kernels* active = nullptr;

constexpr const char* kLinear = "openglm.linear";
constexpr const char* kExperts = "openglm.experts";
constexpr const char* kLayer = "openglm.layer";
constexpr const char* kTrunk = "openglm.trunk";
constexpr const char* kMtp = "openglm.mtp";
constexpr int kMaxExperts = 1024;

// Runs a kernel without the interpreter lock.
template <class F>
PyObject* run(const Arguments& arguments, F&& body) {
    if (arguments.failed()) return nullptr;
    if (!active) {
        PyErr_SetString(PyExc_RuntimeError, "there are no kernels for this processor");
        return nullptr;
    }
    Py_BEGIN_ALLOW_THREADS;
    body();
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

void free_weight_capsule(PyObject* capsule) { free_linear(static_cast<Linear*>(PyCapsule_GetPointer(capsule, kLinear))); }

// Destructor of the capsules that keep the capsules they are made of alive.
template <class Owned>
void free_owned(PyObject* capsule) {
    auto* owned = static_cast<Owned*>(PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule)));
    Py_DECREF(owned->owner);
    delete owned;
}

// new_linear(n, k, dtype) -> capsule of a weight without rows
PyObject* new_linear_capsule(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 3);
    const int n = a.number(), k = a.number();
    const DType dtype = a.dtype();
    if (!a.failed() && (n < 1 || k < 1)) a.fail("a weight needs at least one row and one column");
    if (a.failed()) return nullptr;
    Linear* w = new_linear(n, k, dtype);
    return w ? PyCapsule_New(w, kLinear, free_weight_capsule) : PyErr_NoMemory();
}

// pack_rows(weight, first, count, rows, dtype of rows, scales or 0, with all threads) -> whether nothing was lost; see kernels.h
PyObject* pack_rows_of(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 7);
    auto* w = a.capsule<Linear>(kLinear);
    const int first = a.number(), rows = a.number();
    const void* source = a.address<const void>();
    const DType dtype = a.dtype();
    const float* scales = a.address<const float>();
    const bool shared = a.number() != 0;
    if (!a.failed() && (first < 0 || rows < 0 || first > w->n - rows)) a.fail("rows lie outside the weight");
    if (!a.failed() && dtype == DType::fp8 && (w->dtype != DType::fp8 || !scales)) a.fail("fp8 rows need an fp8 weight and scales");
    if (a.failed()) return nullptr;
    bool lossless = true;
    Py_BEGIN_ALLOW_THREADS;
    lossless = pack_rows(*w, first, rows, source, dtype, scales, shared);
    Py_END_ALLOW_THREADS;
    return PyBool_FromLong(lossless);
}

// pack_again(weight, source weight) -> whether it fits without a loss that the format does not bring; see kernels.h
PyObject* pack_again_of(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 2);
    auto* w = a.capsule<Linear>(kLinear);
    const auto* source = a.capsule<const Linear>(kLinear);
    if (a.failed()) return nullptr;
    bool fits = true;
    Py_BEGIN_ALLOW_THREADS;
    fits = pack_again(*w, *source);
    Py_END_ALLOW_THREADS;
    return PyBool_FromLong(fits);
}

// set_bias(weight, bias [n] fp32)
PyObject* set_bias_of(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 2);
    auto* w = a.capsule<Linear>(kLinear);
    const float* bias = a.address<const float>();
    if (a.failed()) return nullptr;
    if (!set_bias(*w, bias)) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

struct OwnedExperts {
    Experts experts;
    std::vector<Linear*> gate, up, down;
    std::vector<float> bias;
    PyObject* owner;  // keeps the capsules alive
};

bool read_capsules(PyObject* sequence, std::vector<Linear*>& into) {
    const Py_ssize_t size = PyTuple_Size(sequence);
    for (Py_ssize_t i = 0; i < size; i++) {
        auto* w = static_cast<Linear*>(PyCapsule_GetPointer(PyTuple_GetItem(sequence, i), kLinear));
        if (!w) return false;
        into.push_back(w);
    }
    return size >= 0;
}

// pack_experts((gates, ups, downs, router), bias_f32, num_experts, top_k, normalise, scaling) -> capsule
PyObject* pack_experts(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 6);
    PyObject* parts = a.object();
    const float* bias = a.address<const float>();
    const int num_experts = a.number(), top_k = a.number(), normalise = a.number();
    const float scaling = a.real();
    if (a.failed()) return nullptr;
    if (PyTuple_Size(parts) != 4 || num_experts < 1 || num_experts > kMaxExperts || top_k < 1 || top_k > num_experts) {
        a.fail("experts: sizes out of range");
        return nullptr;
    }
    auto* owned = new OwnedExperts{};
    auto* router = static_cast<Linear*>(PyCapsule_GetPointer(PyTuple_GetItem(parts, 3), kLinear));
    const bool read = router && read_capsules(PyTuple_GetItem(parts, 0), owned->gate) && read_capsules(PyTuple_GetItem(parts, 1), owned->up) &&
                      read_capsules(PyTuple_GetItem(parts, 2), owned->down);
    const size_t slots = owned->gate.size();
    if (!read || owned->up.size() != slots || owned->down.size() != slots || slots < static_cast<size_t>(num_experts) ||
        slots > static_cast<size_t>(num_experts) + 1) {
        delete owned;
        a.fail("experts: gate, up and down must hold every expert and at most one shared one");
        return nullptr;
    }
    owned->bias.assign(bias, bias + num_experts);
    Py_INCREF(parts);
    owned->owner = parts;
    owned->experts = {num_experts,         top_k,          slots > static_cast<size_t>(num_experts), normalise != 0, scaling, router,
                      owned->bias.data(), owned->gate.data(), owned->up.data(),                       owned->down.data(), 0, 0};
    return PyCapsule_New(owned, kExperts, free_owned<OwnedExperts>);
}

struct OwnedLayer {
    Layer layer;
    PyObject* owner;  // keeps the capsules alive
};

// pack_layer((qkv, o, experts) or (qkv, o, gate, up, down), hidden, q_heads, rotary_dim, eps, scale, input_norm, post_norm, q_norm,
// k_norm) -> capsule. The norms stay the caller's.
PyObject* pack_layer(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 10);
    PyObject* parts = a.object();
    Layer layer{};
    layer.hidden = a.number();
    layer.q_heads = a.number();
    layer.rotary_dim = a.number();
    layer.eps = a.real();
    layer.scale = a.real();
    layer.input_norm = a.address<const void>();
    layer.post_norm = a.address<const void>();
    layer.q_norm = a.address<const void>();
    layer.k_norm = a.address<const void>();
    if (a.failed()) return nullptr;
    const Py_ssize_t size = PyTuple_Size(parts);
    auto part = [&](Py_ssize_t i, const char* name) { return PyCapsule_GetPointer(PyTuple_GetItem(parts, i), name); };
    if (size != 3 && size != 5) {
        a.fail("a layer has three or five parts");
        return nullptr;
    }
    layer.qkv = static_cast<Linear*>(part(0, kLinear));
    layer.o = static_cast<Linear*>(part(1, kLinear));
    bool whole = layer.qkv && layer.o;
    if (size == 3) {
        auto* owned = static_cast<OwnedExperts*>(part(2, kExperts));
        layer.experts = owned ? &owned->experts : nullptr;
        whole = whole && owned;
    } else {
        layer.gate = static_cast<Linear*>(part(2, kLinear));
        layer.up = static_cast<Linear*>(part(3, kLinear));
        layer.down = static_cast<Linear*>(part(4, kLinear));
        whole = whole && layer.gate && layer.up && layer.down;
    }
    if (!whole) return nullptr;
    Py_INCREF(parts);
    return PyCapsule_New(new OwnedLayer{layer, parts}, kLayer, free_owned<OwnedLayer>);
}

struct OwnedTrunk {
    Trunk trunk;
    std::vector<const Layer*> layers;
    long long vocabulary, positions;
    PyObject* owner;  // keeps the capsules alive
};

// pack_trunk(layers, embedding, rows of it, norm, rope, rows of it) -> capsule. The tensors behind the addresses stay the caller's.
PyObject* pack_trunk(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 6);
    PyObject* layers = a.object();
    auto* owned = new OwnedTrunk{};
    owned->trunk.embedding = a.address<const void>();
    owned->vocabulary = a.integer();
    owned->trunk.norm = a.address<const void>();
    owned->trunk.rope = a.address<const float>();
    owned->positions = a.integer();
    const Py_ssize_t size = a.failed() ? 0 : PyTuple_Size(layers);
    if (size < 1) a.fail("a trunk needs a layer");
    for (Py_ssize_t i = 0; i < size && !a.failed(); i++) {
        auto* layer = static_cast<OwnedLayer*>(PyCapsule_GetPointer(PyTuple_GetItem(layers, i), kLayer));
        if (!layer) a.fail("a trunk is made of layers");
        else owned->layers.push_back(&layer->layer);
    }
    if (a.failed()) {
        delete owned;
        return nullptr;
    }
    owned->trunk.layers = owned->layers.data();
    owned->trunk.num_layers = static_cast<int>(size);
    Py_INCREF(layers);
    owned->owner = layers;
    return PyCapsule_New(owned, kTrunk, free_owned<OwnedTrunk>);
}

struct OwnedMtp {
    Mtp mtp;
    PyObject* owner;  // keeps the capsules alive
};

// pack_mtp((eh, layer, head), embedding, enorm, hnorm, norm, rope) -> capsule. The tensors behind the addresses stay the caller's.
PyObject* pack_mtp(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 6);
    PyObject* parts = a.object();
    Mtp mtp{};
    mtp.embedding = a.address<const void>();
    mtp.enorm = a.address<const void>();
    mtp.hnorm = a.address<const void>();
    mtp.norm = a.address<const void>();
    mtp.rope = a.address<const float>();
    if (!a.failed() && PyTuple_Size(parts) != 3) a.fail("an MTP layer has three parts");
    if (a.failed()) return nullptr;
    mtp.eh = static_cast<Linear*>(PyCapsule_GetPointer(PyTuple_GetItem(parts, 0), kLinear));
    auto* owned = static_cast<OwnedLayer*>(PyCapsule_GetPointer(PyTuple_GetItem(parts, 1), kLayer));
    mtp.head = static_cast<Linear*>(PyCapsule_GetPointer(PyTuple_GetItem(parts, 2), kLinear));
    if (!mtp.eh || !owned || !mtp.head) return nullptr;
    mtp.layer = &owned->layer;
    Py_INCREF(parts);
    return PyCapsule_New(new OwnedMtp{mtp, parts}, kMtp, free_owned<OwnedMtp>);
}

PyObject* linear(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 6);
    auto* w = a.capsule<Linear>(kLinear);
    const void* x = a.address<const void>();
    const int rows = a.number();
    const void* residual = a.address<const void>();
    void* out = a.address<void>();
    const DType dtype = a.dtype();
    return run(a, [&] { active->linear(*w, x, rows, residual, out, dtype); });
}

PyObject* linear_f32(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 5);
    auto* w = a.capsule<Linear>(kLinear);
    const void* x = a.address<const void>();
    const int rows = a.number();
    float* out = a.address<float>();
    const DType dtype = a.dtype();
    return run(a, [&] { active->linear_f32(*w, x, rows, out, dtype); });
}

PyObject* mlp(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 8);
    auto* gate = a.capsule<Linear>(kLinear);
    auto* up = a.capsule<Linear>(kLinear);
    auto* down = a.capsule<Linear>(kLinear);
    const void* x = a.address<const void>();
    const int rows = a.number();
    const void* residual = a.address<const void>();
    void* out = a.address<void>();
    const DType dtype = a.dtype();
    return run(a, [&] { active->mlp(*gate, *up, *down, x, rows, residual, out, dtype); });
}

PyObject* moe(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 6);
    auto* owned = a.capsule<OwnedExperts>(kExperts);
    const void* x = a.address<const void>();
    const int rows = a.number();
    const void* residual = a.address<const void>();
    void* out = a.address<void>();
    const DType dtype = a.dtype();
    return run(a, [&] { active->moe(owned->experts, x, rows, residual, out, dtype); });
}

PyObject* rms_norm(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 7);
    const void* x = a.address<const void>();
    const void* weight = a.address<const void>();
    const float eps = a.real();
    const int rows = a.number(), width = a.number();
    void* out = a.address<void>();
    const DType dtype = a.dtype();
    return run(a, [&] { active->rms_norm(x, weight, eps, rows, width, out, dtype); });
}

PyObject* highest(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 6);
    const float* x = a.address<const float>();
    const int rows = a.number();
    const long long stride = a.integer();
    const int n = a.number();
    float* values = a.address<float>();
    int64_t* places = a.address<int64_t>();
    return run(a, [&] { active->highest(x, rows, stride, n, values, places); });
}

// Seconds that `body` takes, the best of three times.
template <class F>
double best_seconds(F&& body) {
    double best = 0.0;
    for (int i = 0; i < 3; i++) {
        const auto start = std::chrono::steady_clock::now();
        body();
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        best = i == 0 || seconds < best ? seconds : best;
    }
    return best;
}

// (bytes) -> seconds to read that much memory once with all threads, the best of three times
PyObject* measure_reading(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 1);
    const long long bytes = a.integer();
    if (!a.failed() && bytes < 1) a.fail("nothing to read");
    if (a.failed()) return nullptr;
    void* memory = allocate_aligned(bytes);
    if (!memory) return PyErr_NoMemory();
    double best = 0.0;
    volatile uint64_t kept = 0;
    Py_BEGIN_ALLOW_THREADS;
    std::memset(memory, 1, bytes);  // pages that nobody has written are all one and the same
    best = best_seconds([&] { kept = kept ^ read_memory(memory, bytes); });
    free_aligned(memory, bytes);
    Py_END_ALLOW_THREADS;
    return PyFloat_FromDouble(best);
}

// (experts) -> (calls so far, routed experts that had tokens in them, summed over the calls)
PyObject* experts_hit(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 1);
    const auto* owned = a.capsule<OwnedExperts>(kExperts);
    if (a.failed()) return nullptr;
    return Py_BuildValue("LL", static_cast<long long>(owned->experts.steps), static_cast<long long>(owned->experts.hits));
}

// (steps, weight dtype, activation dtype) -> seconds for that many rounds of `multiply_registers` on every thread, the best of three times
PyObject* measure_multiplying(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 3);
    const long long steps = a.integer();
    const DType weight = a.dtype(), activation = a.dtype();
    if (!a.failed() && !active) a.fail("there are no kernels for this processor");
    if (a.failed()) return nullptr;
    double best = 0.0;
    Py_BEGIN_ALLOW_THREADS;
    std::vector<float> kept(num_threads());
    best = best_seconds([&] {
        parallel_for(num_threads(), [&](int thread) { kept[thread] = active->multiply_registers(steps, weight, activation); });
    });
    Py_END_ALLOW_THREADS;
    return PyFloat_FromDouble(best);
}

Pages pages_of(Arguments& a) {
    void* data = a.address<void>();
    float* scales = a.address<float>();
    const DType dtype = a.dtype();
    const int kv_heads = a.number(), head_dim = a.number();
    return {data, scales, dtype, kv_heads, head_dim};
}

// (qkv, tokens, q_heads, q_norm, k_norm, eps, rope, rotary_dim, slots, pages x 5, q_out, dtype)
PyObject* rope_and_write(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 16);
    const void* qkv = a.address<const void>();
    const int tokens = a.number(), q_heads = a.number();
    const void* q_norm = a.address<const void>();
    const void* k_norm = a.address<const void>();
    const float eps = a.real();
    const float* rope = a.address<const float>();
    const int rotary_dim = a.number();
    const int64_t* slots = a.address<const int64_t>();
    const Pages pages = pages_of(a);
    void* out = a.address<void>();
    const DType dtype = a.dtype();
    return run(a, [&] { active->rope_and_write(qkv, tokens, q_heads, q_norm, k_norm, eps, rope, rotary_dim, slots, pages, out, dtype); });
}

AttentionBatch batch_of(Arguments& a) {
    AttentionBatch batch{};
    batch.requests = a.number();
    batch.query_starts = a.address<const int64_t>();
    batch.kv_lengths = a.address<const int64_t>();
    batch.page_table = a.address<const int64_t>();
    batch.table_stride = a.integer();
    return batch;
}

// (layer, x, tokens, rope, slots, pages x 5, requests, query_starts, kv_lengths, page_table, table_stride, dtype)
PyObject* decoder_layer(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 16);
    auto* owned = a.capsule<OwnedLayer>(kLayer);
    void* x = a.address<void>();
    const int tokens = a.number();
    const float* rope = a.address<const float>();
    const int64_t* slots = a.address<const int64_t>();
    const Pages pages = pages_of(a);
    const AttentionBatch batch = batch_of(a);
    const DType dtype = a.dtype();
    return run(a, [&] { active->decoder_layer(owned->layer, x, tokens, rope, slots, pages, batch, dtype); });
}

// (trunk, tokens, count, positions, slots, 5 numbers of pages per layer as a tuple, requests, query_starts, kv_lengths, page_table,
// table_stride, out, dtype)
PyObject* trunk(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 13);
    auto* owned = a.capsule<OwnedTrunk>(kTrunk);
    const int64_t* tokens = a.address<const int64_t>();
    const int num_tokens = a.number();
    const int64_t* positions = a.address<const int64_t>();
    const int64_t* slots = a.address<const int64_t>();
    PyObject* numbers = a.object();
    const AttentionBatch batch = batch_of(a);
    void* out = a.address<void>();
    const DType dtype = a.dtype();
    if (a.failed()) return nullptr;
    const Py_ssize_t size = PyTuple_Size(numbers);
    if (size != 5 * owned->trunk.num_layers) a.fail("pages must be given for every layer");
    std::vector<Pages> pages;
    for (Py_ssize_t i = 0; i < size && !a.failed(); i += 5) {
        PyObject* five[5];
        for (int j = 0; j < 5; j++) five[j] = PyTuple_GetItem(numbers, i + j);
        Arguments part(five, 5, 5);
        pages.push_back(pages_of(part));
        if (part.failed()) return nullptr;
    }
    for (int i = 0; i < num_tokens && !a.failed(); i++)
        if (tokens[i] < 0 || tokens[i] >= owned->vocabulary || positions[i] < 0 || positions[i] >= owned->positions) {
            PyErr_SetString(PyExc_IndexError, "a token or a position is out of range");
            return nullptr;
        }
    return run(a, [&] { active->trunk(owned->trunk, tokens, num_tokens, positions, slots, pages.data(), batch, out, dtype); });
}

// (mtp, tokens, hidden, rows, positions, slots, pages x 5, dtype)
PyObject* mtp_write_kv(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 12);
    auto* owned = a.capsule<OwnedMtp>(kMtp);
    const int64_t* tokens = a.address<const int64_t>();
    const void* hidden = a.address<const void>();
    const int rows = a.number();
    const int64_t* positions = a.address<const int64_t>();
    const int64_t* slots = a.address<const int64_t>();
    const Pages pages = pages_of(a);
    const DType dtype = a.dtype();
    return run(a, [&] { active->mtp_write_kv(owned->mtp, tokens, hidden, rows, positions, slots, pages, dtype); });
}

// (mtp, tokens, hidden, sequences, first_rows, counts, positions, depths, num_tokens, pages x 5, page_table, table_stride, drafted, logits, dtype)
PyObject* mtp_draft(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 19);
    auto* owned = a.capsule<OwnedMtp>(kMtp);
    const int64_t* tokens = a.address<const int64_t>();
    const void* hidden = a.address<const void>();
    const int sequences = a.number();
    const int64_t* first_rows = a.address<const int64_t>();
    const int64_t* counts = a.address<const int64_t>();
    const int64_t* positions = a.address<const int64_t>();
    const int64_t* depths = a.address<const int64_t>();
    const int num_tokens = a.number();
    const Pages pages = pages_of(a);
    const int64_t* page_table = a.address<const int64_t>();
    const long long stride = a.integer();
    int64_t* drafted = a.address<int64_t>();
    float* logits = a.address<float>();
    const DType dtype = a.dtype();
    return run(a, [&] {
        active->mtp_draft(owned->mtp, tokens, hidden, sequences, first_rows, counts, positions, depths, num_tokens, pages, page_table, stride,
                          drafted, logits, dtype);
    });
}

// (q, q_heads, pages x 5, requests, query_starts, kv_lengths, page_table, table_stride, scale, out, dtype)
PyObject* attention(PyObject*, PyObject* const* items, Py_ssize_t count) {
    Arguments a(items, count, 15);
    const void* q = a.address<const void>();
    const int q_heads = a.number();
    const Pages pages = pages_of(a);
    const AttentionBatch batch = batch_of(a);
    const float scale = a.real();
    void* out = a.address<void>();
    const DType dtype = a.dtype();
    return run(a, [&] { active->attention(q, q_heads, pages, batch, scale, out, dtype); });
}

// Whether this process may use AMX tiles: the processor has them, for bf16 and int8, and the kernel grants their state, which it does for
// all threads at once. Asked once, when the module is loaded, before there are threads of ours.
bool tiles_allowed() {
#if defined(OPENGLM_EMULATED_TILES)
    return true;
#elif defined(__x86_64__) && defined(__linux__)
    static const bool allowed = [] {
        constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBf16 | kTile | kInt8;
        constexpr long kGetPermissions = 0x1022, kRequestPermission = 0x1023, kTileData = 18;  // ARCH_{GET,REQ}_XCOMP_PERM, XFEATURE_XTILEDATA
        unsigned a, b, c, d;
        unsigned long granted = 0;  // asked for as well, in case something between us and the kernel says yes to everything
        return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAll) == kAll && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 &&
               syscall(SYS_arch_prctl, kGetPermissions, &granted) == 0 && (granted >> kTileData & 1);
    }();
    return allowed;
#else
    return false;
#endif
}

constexpr int kInstructionSets = 4;

const Kernels* supported(int which) {
#if defined(__x86_64__)
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool products = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
    if (which == 0) return avx512 && products && tiles_allowed() ? amx_kernels() : nullptr;
#if defined(OPENGLM_EMULATED_TILES)  // a build for tests, of that set alone
    (void)avx2;
    return nullptr;
#else
    if (which == 1) return avx512 && products ? avx512_bf16_kernels() : nullptr;
    if (which == 2) return avx512 ? avx512_kernels() : nullptr;
    return avx2 ? avx2_kernels() : nullptr;
#endif
#else
    (void)which;
    return nullptr;
#endif
}

// The instruction sets that this processor can run, best first.
PyObject* supported_names(PyObject*, PyObject*) {
    PyObject* names = PyList_New(0);
    for (int i = 0; names && i < kInstructionSets; i++)
        if (const Kernels* kernels = supported(i)) {
            PyObject* name = PyUnicode_FromString(kernels->name);
            if (name) PyList_Append(names, name);
            Py_XDECREF(name);
        }
    return names;
}

PyObject* active_name(PyObject*, PyObject*) {
    if (!active) Py_RETURN_NONE;
    return PyUnicode_FromString(active->name);
}

PyObject* select_kernels(PyObject*, PyObject* name) {
    PyObject* wanted = PyUnicode_AsUTF8String(name);
    if (!wanted) return nullptr;
    const char* text = PyBytes_AsString(wanted);
    const Kernels* found = nullptr;
    for (int i = 0; i < kInstructionSets; i++) {
        const Kernels* kernels = supported(i);
        if (kernels && std::strcmp(kernels->name, text) == 0) found = kernels;
    }
    Py_DECREF(wanted);
    if (!found) {
        PyErr_SetString(PyExc_ValueError, "this processor has no such kernels");
        return nullptr;
    }
    active = found;
    Py_RETURN_NONE;
}

PyObject* set_threads(PyObject*, PyObject* number) {
    const long count = PyLong_AsLong(number);
    if (count == -1 && PyErr_Occurred()) return nullptr;
    set_num_threads(static_cast<int>(count));
    Py_RETURN_NONE;
}

PyObject* threads(PyObject*, PyObject*) { return PyLong_FromLong(num_threads()); }

// num_bytes(capsule of a linear) -> bytes of its memory, scales and bias included
PyObject* num_bytes(PyObject*, PyObject* capsule) {
    auto* w = static_cast<Linear*>(PyCapsule_GetPointer(capsule, kLinear));
    return w ? PyLong_FromSize_t(linear_bytes(*w)) : nullptr;
}

#define FAST_AS(as, name) {as, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(name)), METH_FASTCALL, nullptr}
#define FAST(name) FAST_AS(#name, name)
PyMethodDef methods[] = {
    FAST_AS("new_linear", new_linear_capsule),
    FAST_AS("pack_rows", pack_rows_of),
    FAST_AS("pack_again", pack_again_of),
    FAST_AS("set_bias", set_bias_of),
    FAST(pack_experts),
    FAST(pack_layer),
    FAST(pack_trunk),
    FAST(pack_mtp),
    FAST(trunk),
    FAST(mtp_write_kv),
    FAST(mtp_draft),
    FAST(decoder_layer),
    FAST(linear),
    FAST(linear_f32),
    FAST(mlp),
    FAST(moe),
    FAST(rms_norm),
    FAST(highest),
    FAST(rope_and_write),
    FAST(attention),
    FAST(experts_hit),
    FAST(measure_reading),
    FAST(measure_multiplying),
    {"supported", supported_names, METH_NOARGS, nullptr},
    {"active", active_name, METH_NOARGS, nullptr},
    {"select", select_kernels, METH_O, nullptr},
    {"set_threads", set_threads, METH_O, nullptr},
    {"threads", threads, METH_NOARGS, nullptr},
    {"num_bytes", num_bytes, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyObject* make_module() {
    for (int i = kInstructionSets - 1; i >= 0; i--)
        if (const Kernels* kernels = supported(i)) active = kernels;
    return PyModule_Create(&module);
}

}  // namespace openglm

PyMODINIT_FUNC PyInit__native() { return openglm::make_module(); }

// The one thread pool of the kernels. Owns no maths.
//
// Workers spin for a short while after a job, because the next one of a step usually follows within microseconds, and then sleep.
#include <atomic>
#include <thread>
#include <vector>

#include "kernels.h"

namespace openglm {
namespace {

constexpr int kSpins = 4000;

// A job as one number: its index in time, how many tasks it has, and the next one to take. Whoever adds 1 learns all three at once, so
// a worker that wakes late - the system had taken its processor - sees that nothing is left, and nobody waits for it.
constexpr int kTaskBits = 20;
constexpr uint64_t kTaskMask = (uint64_t{1} << kTaskBits) - 1;
struct Ticket {
    uint64_t bits;
    int next() const { return static_cast<int>(bits & kTaskMask); }
    int count() const { return static_cast<int>(bits >> kTaskBits & kTaskMask); }
};

class Pool {
public:
    void resize(int count) {
        stop();
        quit_.store(false);
        const uint32_t present = epoch_.load();
        for (int i = 1; i < count; i++) workers_.emplace_back([this, present] { work(present); });
    }
    int size() const { return static_cast<int>(workers_.size()) + 1; }

    void run(int count, void (*fn)(void*, int), void* context) {
        if (workers_.empty() || count < 2) {
            for (int i = 0; i < count; i++) fn(context, i);
            return;
        }
        constexpr int kMost = static_cast<int>(kTaskMask) / 2;  // the other half is room for workers that ask in vain
        for (; count > kMost; count -= kMost) run_at_once(kMost, fn, context, count - kMost);
        run_at_once(count, fn, context, 0);
    }

    ~Pool() { stop(); }

private:
    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    void run_at_once(int count, void (*fn)(void*, int), void* context, int first) {
        fn_ = fn;
        context_ = context;
        first_ = first;
        done_.store(0, std::memory_order_relaxed);
        const uint64_t time = ++num_jobs_ << 2 * kTaskBits;
        ticket_.store(time | static_cast<uint64_t>(count) << kTaskBits, std::memory_order_release);
        epoch_.fetch_add(1, std::memory_order_seq_cst);  // before the look at who sleeps
        if (sleeping_.load(std::memory_order_seq_cst)) epoch_.notify_all();
        take();
        while (done_.load(std::memory_order_acquire) != count) pause();
    }
    void take() {
        for (;;) {
            const Ticket ticket{ticket_.fetch_add(1, std::memory_order_acq_rel)};
            if (ticket.next() >= ticket.count()) return;
            fn_(context_, first_ + ticket.next());  // the job cannot end before this task does, so these are its own
            done_.fetch_add(1, std::memory_order_release);
        }
    }
    void work(uint32_t seen) {
        for (;;) {
            for (int spin = 0; spin < kSpins && epoch_.load(std::memory_order_acquire) == seen; spin++) pause();
            if (epoch_.load(std::memory_order_acquire) == seen) {
                sleeping_.fetch_add(1, std::memory_order_seq_cst);
                epoch_.wait(seen, std::memory_order_seq_cst);
                sleeping_.fetch_sub(1, std::memory_order_seq_cst);
            }
            seen = epoch_.load(std::memory_order_acquire);
            if (quit_.load()) return;
            take();
        }
    }
    void stop() {
        if (workers_.empty()) return;
        quit_.store(true);
        epoch_.fetch_add(1, std::memory_order_release);
        epoch_.notify_all();
        for (auto& worker : workers_) worker.join();
        workers_.clear();
    }

    std::vector<std::thread> workers_;
    std::atomic<uint32_t> epoch_{0};
    std::atomic<uint64_t> ticket_{0};
    std::atomic<int> done_{0}, sleeping_{0};
    std::atomic<bool> quit_{false};
    uint64_t num_jobs_ = 0;
    void (*fn_)(void*, int) = nullptr;
    void* context_ = nullptr;
    int first_ = 0;
};

Pool& pool() {
    static auto* instance = new Pool;  // never destroyed: at exit its threads may still be needed or already be gone
    return *instance;
}

}  // namespace

void run_parallel(int count, void (*fn)(void*, int), void* context) { pool().run(count, fn, context); }
void set_num_threads(int count) { pool().resize(count < 1 ? 1 : count); }
int num_threads() { return pool().size(); }

uint64_t read_memory(const void* p, size_t bytes) {
    constexpr size_t kBlock = size_t{1} << 20;
    std::atomic<uint64_t> total{0};
    parallel_for(static_cast<int>(bytes / kBlock), [&](int i) {
        const auto* words = reinterpret_cast<const uint64_t*>(static_cast<const char*>(p) + i * kBlock);
        uint64_t sums[8] = {};
        for (size_t j = 0; j < kBlock / 8; j += 8)
            for (int k = 0; k < 8; k++) sums[k] ^= words[j + k];
        uint64_t all = 0;
        for (uint64_t sum : sums) all ^= sum;
        total.fetch_xor(all, std::memory_order_relaxed);
    });
    return total.load();
}

}  // namespace openglm

// Threads: one task a tile, shared out among the cores; what comes out does not depend on how many there are.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace slimrun {

/// The number of workers for so many tasks; 0 threads asks for every core.
inline size_t worker_count(size_t threads, uint64_t tasks) {
    if (threads == 0) threads = std::max(1u, std::thread::hardware_concurrency());
    return static_cast<size_t>(std::max<uint64_t>(1, std::min<uint64_t>(threads, tasks)));
}

/// Batches of tiles that are worth a thread: starting one takes as long as encoding about two of them, or
/// decoding eight, and half of a small tensor is not worth that while others wait to be coded.
inline constexpr uint64_t kBatchesPerWorker = 16;

/// The number of workers for so many batches of tiles.
inline size_t batch_workers(size_t threads, uint64_t batches) {
    return worker_count(threads, (batches + kBatchesPerWorker - 1) / kBatchesPerWorker);
}

/// A task that failed, or no problem at all.
struct Failure {
    uint64_t task = 0;
    const char* problem = nullptr;
};

/// Calls work(worker, task) for each task on up to `workers` threads, this one included. `work` must not
/// throw; it returns nullptr or a problem, which stops the rest. Returns the failure of the lowest task:
/// tasks are handed out in order, so every task below a failed one is finished and the answer does not depend
/// on timing.
template <class Work>
Failure run_tasks(uint64_t tasks, size_t workers, const Work& work) {
    std::atomic<uint64_t> next{0};
    std::atomic<bool> stop{false};
    std::vector<Failure> failures(workers);
    const auto run = [&](size_t worker) noexcept {
        while (!stop) {
            const uint64_t task = next++;
            if (task >= tasks) return;
            failures[worker] = {task, work(worker, task)};
            if (failures[worker].problem) stop = true;
        }
    };

    std::vector<std::thread> others;
    others.reserve(workers - 1);
    try {
        for (size_t worker = 1; worker < workers; ++worker) others.emplace_back(run, worker);
    } catch (const std::system_error&) {
        // The system gives no more threads: those that run do all of the work.
    }
    run(0);
    for (std::thread& other : others) other.join();

    Failure first;
    for (const Failure& failure : failures)
        if (failure.problem && (!first.problem || failure.task < first.task)) first = failure;
    return first;
}

}  // namespace slimrun

// Ranks exchange their outputs through memory that all of them map, or through torch.distributed.
#include "exchange.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "threads.h"

namespace caravan {

int64_t Exchange::checked_width(const at::Tensor& part, const std::vector<int64_t>& sizes) const {
  TORCH_CHECK_VALUE((int64_t)sizes.size() == num_ranks, "there are ", sizes.size(), " sizes for ", num_ranks, " ranks");
  TORCH_CHECK_VALUE(part.dim() == 2 && part.is_contiguous() && part.size(1) == sizes[rank],
                    "the part of rank ", rank, " must be contiguous rows of ", sizes[rank], " numbers");
  int64_t width = 0;
  for (int64_t size : sizes) width += size;
  return width;
}

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kSlotBytes = 1 << 20;       // of a part that are exchanged at once
constexpr int64_t kCopiedAlone = 64 * 1024;   // bytes for which other threads are not worth waking
constexpr int kSpins = 1000;                  // 10 to 40 microseconds
constexpr auto kNap = std::chrono::milliseconds(20);  // between looks at whether the other rank is alive

// What a rank shows to the others, in cache lines of its own.
struct alignas(128) Post {
  std::atomic<uint32_t> number;      // of the last piece that lies in one of its slots; it wraps around
  std::atomic<uint32_t> num_asleep;  // ranks that sleep until the number changes
  std::atomic<int64_t> num_rows[2];  // of the part in each slot, by the number modulo 2
  std::atomic<int64_t> process;      // 0 until the rank is there
  std::atomic<uint32_t> has_left;
};
static_assert(std::atomic<uint32_t>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free);

void wake(std::atomic<uint32_t>& number) {
#if defined(__linux__)
  syscall(SYS_futex, &number, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
#endif
}

// Sleep until the number is not `seen`, for a nap at most.
void sleep_while(std::atomic<uint32_t>& number, uint32_t seen) {
#if defined(__linux__)
  const timespec nap{0, std::chrono::nanoseconds(kNap).count()};
  syscall(SYS_futex, &number, FUTEX_WAIT, seen, &nap, nullptr, 0);
#else
  std::this_thread::sleep_for(std::chrono::microseconds(50));
#endif
}

// Give a file its size. Its pages are allocated now: one that the system lacks later would end the process.
int allocate(int descriptor, int64_t num_bytes) {
#if defined(__linux__)
  return posix_fallocate(descriptor, 0, num_bytes);
#else
  return ftruncate(descriptor, num_bytes) ? errno : 0;
#endif
}

// A descriptor of a process that can be polled for its end, or -1 where there is no such thing.
int descriptor_of(int64_t process) {
#if defined(__linux__) && defined(SYS_pidfd_open)
  return syscall(SYS_pidfd_open, (pid_t)process, 0);
#else
  return -1;
#endif
}

void copy_bytes(void* to, const void* from, int64_t count) {
  if (count < kCopiedAlone) {
    std::memcpy(to, from, count);
    return;
  }
  share_out(divide_up(count, kCopiedAlone), [&](int64_t unit) {
    const int64_t begin = unit * kCopiedAlone;
    std::memcpy((uint8_t*)to + begin, (const uint8_t*)from + begin, std::min(kCopiedAlone, count - begin));
  });
}

// The parts of all ranks are exchanged in pieces that fit into a slot. A rank has two: when it writes the second piece
// after one, all others have read that one, since it has seen that they wrote the piece between.
class SharedMemoryExchange : public Exchange {
 public:
  SharedMemoryExchange(int64_t descriptor, int64_t rank, int64_t num_ranks, double timeout_seconds)
      : Exchange(rank, num_ranks),
        timeout_(timeout_seconds),
        num_spins_(num_ranks * num_threads_here() <= std::thread::hardware_concurrency() ? kSpins : 0),
        watched_(num_ranks, -1) {
    num_bytes_ = num_ranks * (sizeof(Post) + 2 * kSlotBytes);
    const int error = allocate(descriptor, num_bytes_);
    TORCH_CHECK_VALUE(error == 0, "cannot have ", num_bytes_, " bytes of shared memory: ", std::strerror(error));
    void* memory = mmap(nullptr, num_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    TORCH_CHECK_VALUE(memory != MAP_FAILED, "cannot map shared memory: ", std::strerror(errno));
    memory_ = (uint8_t*)memory;
    int64_t nobody = 0;
    TORCH_CHECK_VALUE(post(rank).process.compare_exchange_strong(nobody, getpid()), "rank ", rank, " is there already");
  }

  ~SharedMemoryExchange() override { close(); }

  void close() override {
    if (!memory_) return;
    if (failure_.empty()) failure_ = "the exchange is closed";
    leave();
    munmap(memory_, num_bytes_);
    memory_ = nullptr;
    for (int& watched : watched_)
      if (watched >= 0) ::close(watched);
  }

  at::Tensor gather(const at::Tensor& part, const std::vector<int64_t>& sizes) override {
    if (!failure_.empty()) throw std::runtime_error(failure_);
    const int64_t num_rows = part.size(0), width = checked_width(part, sizes), item = part.element_size();
    at::Tensor whole = at::empty({num_rows, width}, part.options());
    std::vector<Columns> columns;
    uint8_t* next = (uint8_t*)whole.mutable_data_ptr();
    for (int64_t size : sizes) {
      columns.push_back({next, size * item, width * item});
      next += size * item;
    }
    const int64_t num_bytes = num_rows * *std::max_element(sizes.begin(), sizes.end()) * item;
    for (int64_t begin = 0; begin < num_bytes; begin += kSlotBytes)
      exchange((const uint8_t*)part.const_data_ptr(), columns, num_rows, begin);
    return whole;
  }

 private:
  // Where the part of a rank lies in the whole.
  struct Columns {
    uint8_t* first;
    int64_t row_bytes, stride;

    // Put bytes begin to end of the part, which lie at `from`, into their places.
    void place(const uint8_t* from, int64_t begin, int64_t end) const {
      if (begin >= end) return;
      auto place_row = [&](int64_t row) {
        const int64_t at = std::max(begin, row * row_bytes), row_end = std::min(end, (row + 1) * row_bytes);
        std::memcpy(first + row * stride + at - row * row_bytes, from + at - begin, row_end - at);
      };
      const int64_t first_row = begin / row_bytes, num_rows = divide_up(end, row_bytes) - first_row;
      if (end - begin < kCopiedAlone)
        for (int64_t i = 0; i < num_rows; i++) place_row(first_row + i);
      else
        share_out(num_rows, [&](int64_t i) { place_row(first_row + i); });
    }
  };

  // The pieces of all parts that begin at byte `begin` of them. A part may have ended before.
  void exchange(const uint8_t* part, const std::vector<Columns>& columns, int64_t num_rows, int64_t begin) {
    auto end_of = [&](int64_t other) { return std::min(begin + kSlotBytes, num_rows * columns[other].row_bytes); };
    Post& own = post(rank);
    number_++;
    if (begin < end_of(rank)) copy_bytes(slot(rank), part + begin, end_of(rank) - begin);
    own.num_rows[number_ % 2].store(num_rows, std::memory_order_relaxed);
    own.number.store(number_, std::memory_order_seq_cst);
    if (own.num_asleep.load(std::memory_order_seq_cst)) wake(own.number);
    columns[rank].place(part + begin, begin, end_of(rank));
    for (int64_t i = 1; i < num_ranks; i++) {
      const int64_t other = (rank + i) % num_ranks;
      wait_for(other);
      if (post(other).num_rows[number_ % 2].load(std::memory_order_relaxed) != num_rows)
        fail("rank " + std::to_string(other) + " computes another batch than rank " + std::to_string(rank));
      columns[other].place(slot(other), begin, end_of(other));
    }
  }

  bool has_posted(int64_t other) const {
    return (int32_t)(post(other).number.load(std::memory_order_acquire) - number_) >= 0;
  }

  // Wait until another rank has written its piece. After a while this thread sleeps, so that it does not keep a core.
  void wait_for(int64_t other) {
    for (int spins = 0; spins < num_spins_; spins++) {
      if (has_posted(other)) return;
      pause_briefly();
    }
    const auto began = Clock::now();
    Post& its = post(other);
    while (!has_posted(other)) {
      if (its.has_left.load(std::memory_order_acquire) && !has_posted(other)) fail("rank " + std::to_string(other) + " has left");
      const auto waited = Clock::now() - began;
      if (waited > timeout_) fail("rank " + std::to_string(other) + " did not answer in time");
      if (waited > kNap && has_ended(other) && !has_posted(other))
        fail("the process of rank " + std::to_string(other) + " has ended");
      its.num_asleep.fetch_add(1, std::memory_order_seq_cst);
      const uint32_t seen = its.number.load(std::memory_order_seq_cst);
      if ((int32_t)(seen - number_) < 0) sleep_while(its.number, seen);
      its.num_asleep.fetch_sub(1, std::memory_order_relaxed);
    }
  }

  bool has_ended(int64_t other) {
    int& watched = watched_[other];
    if (watched < 0) {
      const int64_t process = post(other).process.load(std::memory_order_acquire);
      if (process) watched = descriptor_of(process);
    }
    if (watched < 0) return false;
    pollfd polled{watched, POLLIN, 0};
    return poll(&polled, 1, 0) > 0;
  }

  [[noreturn]] void fail(const std::string& why) {
    failure_ = why;
    leave();
    throw std::runtime_error(failure_);
  }

  void leave() {
    post(rank).has_left.store(1, std::memory_order_release);
    wake(post(rank).number);
  }

  Post& post(int64_t other) const { return ((Post*)memory_)[other]; }
  uint8_t* slot(int64_t other) const {
    return memory_ + num_ranks * sizeof(Post) + (2 * other + number_ % 2) * kSlotBytes;
  }

  const std::chrono::duration<double> timeout_;
  const int num_spins_;
  uint8_t* memory_ = nullptr;
  int64_t num_bytes_;
  uint32_t number_ = 0;
  std::vector<int> watched_;  // descriptors of the other ranks' processes
};

class GroupExchange : public Exchange {
 public:
  GroupExchange(std::string name, int64_t rank, int64_t num_ranks) : Exchange(rank, num_ranks), name_(std::move(name)) {}

  void close() override { failure_ = "the exchange is closed"; }

  // The group wants parts of one size: each is filled up to the largest. Bytes, which every backend can send.
  at::Tensor gather(const at::Tensor& part, const std::vector<int64_t>& sizes) override {
    if (!failure_.empty()) throw std::runtime_error(failure_);
    checked_width(part, sizes);
    const int64_t num_rows = part.size(0), item = part.element_size();
    const int64_t largest = *std::max_element(sizes.begin(), sizes.end()) * item;
    at::Tensor sent = at::empty({num_rows, largest}, part.options().dtype(at::kByte));
    sent.narrow(1, 0, sizes[rank] * item).copy_(part.view(at::kByte));
    at::Tensor all;
    try {
      all = call("_c10d_functional::wait_tensor", {call("_c10d_functional::all_gather_into_tensor", {sent, num_ranks, name_})});
    } catch (const std::exception& error) {
      failure_ = error.what();
      throw;
    }
    std::vector<at::Tensor> parts;
    for (int64_t other = 0; other < num_ranks; other++)
      parts.push_back(all.narrow(0, other * num_rows, num_rows).narrow(1, 0, sizes[other] * item));
    return at::cat(parts, 1).view(part.scalar_type());
  }

 private:
  // torch.distributed registers these operators when Python imports it.
  static at::Tensor call(const char* name, std::vector<c10::IValue> arguments) {
    c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(arguments);
    return arguments[0].toTensor();
  }

  const std::string name_;
};

}  // namespace

c10::intrusive_ptr<Exchange> shared_memory_exchange(int64_t descriptor, int64_t rank, int64_t num_ranks,
                                                    double timeout_seconds) {
  return c10::make_intrusive<SharedMemoryExchange>(descriptor, rank, num_ranks, timeout_seconds);
}

c10::intrusive_ptr<Exchange> group_exchange(std::string group_name, int64_t rank, int64_t num_ranks) {
  return c10::make_intrusive<GroupExchange>(std::move(group_name), rank, num_ranks);
}

}  // namespace caravan

#include "record/waits.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "python/handlers.h"
#include "python/lines.h"
#include "python/python.h"
#include "record/address_tables.h"
#include "record/recorder.h"
#include "runtime/runtime.h"

// Note [What is waiting]
// The predicted machine waits when the program requests it: for a sleep, a pipe, a socket, a process, or a lock of its threads.
// It does not wait for work that only this machine does: compilers and their caches, imports, page faults, the emulation, and
// other programs on the processor. The wall clock cannot distinguish the two, so the calls themselves are watched. The
// interpreter and the program's libraries call the C library through tables of addresses, and these are changed to call the
// functions below. The tables of torch, Triton and bringup are not changed. Then these rules apply:
//   - A call that would not block is no wait, however long it takes.
//   - A time-out that expires takes the requested time.
//   - A wait for a lock, or for bytes from another thread of the program, lasts until that thread releases it on the predicted
//     clock. The replay determines this time from rows of the kinds Signal and Resume.
//   - A wait for another process takes the time measured on this machine.
//   - Waits of compilers and imports are not recorded.
namespace bringup {
namespace {

std::atomic<bool> is_watching_waits{false};
thread_local int aside = 0;
thread_local int sleeps_recorded = 0;  // not 0 while the caller itself records its sleep

// True if a wait of this thread is recorded now. Called first, since the code after it may allocate and lock.
bool counts() {
  return is_watching_waits.load(std::memory_order_relaxed) && !within_handler() && recording() && aside == 0 &&
         is_python_thread();
}

int64_t clock_ns(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec * 1000000000ll + now.tv_nsec;
}
int64_t now_ns() { return clock_ns(CLOCK_MONOTONIC); }
int64_t until_ns(clockid_t clock, const timespec* deadline) {
  return deadline->tv_sec * 1000000000ll + deadline->tv_nsec - clock_ns(clock);
}
int64_t length_ns(const timespec* length) { return length->tv_sec * 1000000000ll + length->tv_nsec; }

// The time for which this thread was ready to run without a processor; -1 if the operating system does not provide it.
int64_t queued_ns() {
  int file = ::open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
  if (file < 0) return -1;
  char text[96] = {};
  ssize_t bytes = ::read(file, text, sizeof text - 1);
  ::close(file);
  long long ran = 0, queued = 0;
  return bytes > 0 && std::sscanf(text, "%lld %lld", &ran, &queued) == 2 ? queued : -1;
}
int64_t queued_since(int64_t before) {
  int64_t now = queued_ns();
  return before < 0 || now < before ? 0 : now - before;
}

struct KeepErrno {
  int value = errno;
  ~KeepErrno() { errno = value; }
};

void record_wait(WaitFor what, int64_t ns) {
  if (ns <= 0 || !recording() || within_machinery()) return;
  record_row(RowKind::Host, nullptr, current_line(), 0, ns, uint8_t(what));
}

// ---- threads that release other threads

std::atomic<int64_t> next_signal{1};

int64_t record_signal() {
  int64_t signal = next_signal++;
  record_row(RowKind::Signal, nullptr, {}, 0, signal);
  return signal;
}

void record_resume(int64_t signal) {
  if (recording()) record_row(RowKind::Resume, nullptr, current_line(), 0, signal);
}

// The threads that wait for a semaphore, each with the signal that released it.
struct Waiter {
  void* semaphore;
  int64_t signal = 0;
  Waiter* next = nullptr;
};
struct Waiters {
  std::mutex mutex;
  Waiter* first = nullptr;
};
std::array<Waiters, 64> waiters;  // by address of the semaphore
std::atomic<int> waiters_count{0};

Waiters& waiters_for(void* semaphore) { return waiters[reinterpret_cast<uintptr_t>(semaphore) / 32 % waiters.size()]; }

class WaitForLock {
 public:
  explicit WaitForLock(void* semaphore) : waiter_{semaphore} {
    Waiters& all = waiters_for(semaphore);
    std::lock_guard<std::mutex> lock(all.mutex);
    waiter_.next = std::exchange(all.first, &waiter_);
    ++waiters_count;
  }
  ~WaitForLock() {
    Waiters& all = waiters_for(waiter_.semaphore);
    std::lock_guard<std::mutex> lock(all.mutex);
    Waiter** link = &all.first;
    while (*link != &waiter_) link = &(*link)->next;
    *link = waiter_.next;
    --waiters_count;
  }
  int64_t signal() {
    std::lock_guard<std::mutex> lock(waiters_for(waiter_.semaphore).mutex);
    return waiter_.signal;
  }

 private:
  Waiter waiter_;
};

void signal_waiters(void* semaphore) {
  Waiters& all = waiters_for(semaphore);
  std::lock_guard<std::mutex> lock(all.mutex);
  int64_t signal = 0;
  for (Waiter* waiter = all.first; waiter; waiter = waiter->next) {
    if (waiter->semaphore != semaphore) continue;
    if (signal == 0) signal = record_signal();
    waiter->signal = signal;
  }
}

// Note [Interrupted waits]
// An operating system's signal ends a wait early, and the interpreter then waits for the remaining time. The time until then
// depends on this machine. So the two count as one wait with the time that was requested first. Its end is a time-out or the
// release by another thread.
struct Interrupted {
  const void* object = nullptr;  // a semaphore, or one address for all descriptors
  int64_t deadline = 0, requested = 0, since = 0, queued = -1, before = 0;
  int64_t passed = 0;  // time until the signal
  WaitFor what = WaitFor::Time;
};
thread_local Interrupted interrupted;

// The wait was not resumed, for example because the signal handler raised an error. It lasted until the signal.
void end_interrupted(const Interrupted& wait) {
  if (wait.object) record_wait(wait.what, wait.passed);
}

// Returns the interrupted wait that now continues for `rest` nanoseconds, or one without an object if this is a new wait.
Interrupted interrupted_before(const void* object, int64_t rest) {
  constexpr int64_t kClose = 200000000;  // nanoseconds by which the deadlines of one wait may differ
  Interrupted before = std::exchange(interrupted, {});
  if (before.object == object && std::abs(now_ns() + rest - before.deadline) < kClose) return before;
  end_interrupted(before);
  return {};
}

thread_local int64_t start_signal = 0;
thread_local bool by_python = false;  // true for threads started by the interpreter, and for the one that called watch_waits

// The recording's numbers of the threads that run a backward pass, the latest last.
struct Backwards {
  std::mutex mutex;
  std::vector<int32_t> threads;
};
Backwards& backwards() {
  static auto* all = new Backwards();
  return *all;
}
std::atomic<int> backwards_count{0};

int32_t begin_backward() {
  int32_t master = works_for(), thread = master >= 0 ? master : recording_thread();  // a node may itself start a backward pass
  std::lock_guard<std::mutex> lock(backwards().mutex);
  backwards().threads.push_back(thread);
  ++backwards_count;
  return thread;
}

void end_backward(int32_t thread) {
  std::lock_guard<std::mutex> lock(backwards().mutex);
  auto& threads = backwards().threads;
  auto latest = std::find(threads.rbegin(), threads.rend(), thread);
  if (latest == threads.rend()) return;
  threads.erase(std::next(latest).base());
  --backwards_count;
}

struct Started {
  void* (*run)(void*);
  void* argument;
  int64_t signal;
};

void* start_thread(void* memory) {
  std::unique_ptr<Started> started(static_cast<Started*>(memory));
  by_python = true;
  start_signal = started->signal;
  void* (*run)(void*) = started->run;
  void* argument = started->argument;
  started.reset();
  return run(argument);
}

// Records which channels threads of the program write to while other threads wait for bytes.
struct Channels {
  std::mutex mutex;
  std::unordered_map<uint64_t, std::vector<int64_t>> written;  // reading end -> signals, in order
  std::unordered_map<uint64_t, uint64_t> other_end;            // for the ends of socket pairs
};
Channels& channels() {
  static auto* all = new Channels();
  return *all;
}
std::atomic<int> readers_count{0};

// Identifies a pipe, socket or device by its inode. Objects that share an inode with others (eventfd, timerfd) are identified by
// their descriptor. Returns 0 for files, since reading them is no wait.
uint64_t channel_of(int descriptor) {
  struct stat about;
  if (fstat(descriptor, &about) != 0) return 0;
  if ((about.st_mode & S_IFMT) == 0) return 1ull << 63 | uint64_t(descriptor);
  if (!S_ISFIFO(about.st_mode) && !S_ISSOCK(about.st_mode) && !S_ISCHR(about.st_mode)) return 0;
  return about.st_ino ^ uint64_t(about.st_dev) << 40;
}

// True if the pipe has no room for these bytes. poll only checks for room of one page.
bool is_full(int descriptor, size_t bytes) {
  int size = fcntl(descriptor, F_GETPIPE_SZ), unread = 0;
  return size > 0 && !(fcntl(descriptor, F_GETFL) & O_NONBLOCK) && ioctl(descriptor, FIONREAD, &unread) == 0 &&
         size_t(unread) + bytes > size_t(size);
}

bool would_block(int descriptor, short events) {
  if (fcntl(descriptor, F_GETFL) & O_NONBLOCK) return false;
  pollfd one{descriptor, events, 0};
  return ::poll(&one, 1, 0) == 0;
}

void note_written(int descriptor) {
  if (readers_count.load() == 0 || !counts()) return;
  KeepErrno keep;
  uint64_t channel = channel_of(descriptor);
  if (!channel) return;
  constexpr size_t kMost = 1024;  // writes that are stored until a reader wakes up
  std::lock_guard<std::mutex> lock(channels().mutex);
  auto end = channels().other_end.find(channel);
  std::vector<int64_t>& written = channels().written[end == channels().other_end.end() ? channel : end->second];
  if (written.size() == kMost) written.erase(written.begin(), written.begin() + kMost / 2);
  written.push_back(record_signal());
}

// A wait for descriptors or a process. `requested` is the time-out in nanoseconds, or 0 if there is none.
class Blocked {
 public:
  explicit Blocked(WaitFor what, int64_t requested = 0) : what_(what) {
    KeepErrno keep;
    ++readers_count;
    int64_t now = now_ns();
    if (Interrupted first = interrupted_before(&readers_count, requested); requested > 0 && first.object)
      wait_ = first;
    else
      wait_ = {&readers_count, now + requested, requested, now, queued_ns(), next_signal};
  }
  // Cancels the wait: a write arrived before this thread was registered as a reader.
  void never_mind() { --readers_count; }
  // Ends the wait: the call has failed (< 0), has timed out (0), or these descriptors are ready.
  template <class Descriptors>
  void over(int64_t result, const Descriptors& ready) {
    KeepErrno keep;
    int64_t wall = now_ns() - wait_.since;
    --readers_count;
    if (wait_.requested > 0 && result < 0 && errno == EINTR) {
      interrupted = wait_;
      interrupted.passed = wall;
      interrupted.what = what_;
    } else if (wait_.requested > 0 && result == 0)
      record_wait(what_, wait_.requested);
    else if (int64_t signal = written_by_us(ready))
      record_resume(signal);
    else
      record_wait(what_, wall - queued_since(wait_.queued));
  }

 private:
  WaitFor what_;
  Interrupted wait_;

  template <class Descriptors>
  int64_t written_by_us(const Descriptors& ready) {
    if (next_signal == wait_.before) return 0;
    std::lock_guard<std::mutex> lock(channels().mutex);
    for (int descriptor : ready) {
      auto entry = channels().written.find(channel_of(descriptor));
      if (entry == channels().written.end()) continue;
      auto first = std::lower_bound(entry->second.begin(), entry->second.end(), wait_.before);
      if (first != entry->second.end()) return *first;
    }
    return 0;
  }
};

using Descriptors = std::vector<int>;

// `call` transfers bytes of a descriptor.
template <class Call>
auto transfer(int descriptor, short events, bool never_blocks, Call call, size_t bytes = 0) {
  if (never_blocks || !counts() || !channel_of(descriptor)) return call();
  if (!would_block(descriptor, events) && !(bytes > 0 && is_full(descriptor, bytes))) return call();
  Blocked blocked(WaitFor::Descriptor);
  if (!would_block(descriptor, events) && bytes == 0) {
    blocked.never_mind();
    return call();
  }
  auto result = call();
  blocked.over(result, Descriptors{descriptor});
  return result;
}

// ---- replacements of the C library's functions

ssize_t read_(int descriptor, void* to, size_t bytes) {
  return transfer(descriptor, POLLIN, false, [&] { return ::read(descriptor, to, bytes); });
}
ssize_t readv_(int descriptor, const iovec* to, int count) {
  return transfer(descriptor, POLLIN, false, [&] { return ::readv(descriptor, to, count); });
}
ssize_t recv_(int descriptor, void* to, size_t bytes, int flags) {
  return transfer(descriptor, POLLIN, flags & MSG_DONTWAIT, [&] { return ::recv(descriptor, to, bytes, flags); });
}
ssize_t recvfrom_(int descriptor, void* to, size_t bytes, int flags, sockaddr* from, socklen_t* length) {
  return transfer(descriptor, POLLIN, flags & MSG_DONTWAIT,
                  [&] { return ::recvfrom(descriptor, to, bytes, flags, from, length); });
}
ssize_t recvmsg_(int descriptor, msghdr* message, int flags) {
  return transfer(descriptor, POLLIN, flags & MSG_DONTWAIT, [&] { return ::recvmsg(descriptor, message, flags); });
}
int accept_(int descriptor, sockaddr* from, socklen_t* length) {
  return transfer(descriptor, POLLIN, false, [&] { return ::accept(descriptor, from, length); });
}
int accept4_(int descriptor, sockaddr* from, socklen_t* length, int flags) {
  return transfer(descriptor, POLLIN, false, [&] { return ::accept4(descriptor, from, length, flags); });
}
// Connections to this machine's own addresses do not wait.
bool is_local(const sockaddr* to) {
  if (to->sa_family == AF_INET) return ntohl(reinterpret_cast<const sockaddr_in*>(to)->sin_addr.s_addr) >> 24 == 127;
  if (to->sa_family == AF_INET6) return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(to)->sin6_addr);
  return to->sa_family == AF_UNIX;
}
int connect_(int descriptor, const sockaddr* to, socklen_t length) {
  if (!counts() || (fcntl(descriptor, F_GETFL) & O_NONBLOCK) || is_local(to)) return ::connect(descriptor, to, length);
  Blocked blocked(WaitFor::Descriptor);
  int result = ::connect(descriptor, to, length);
  blocked.over(result, Descriptors{});
  return result;
}
int recvmmsg_(int descriptor, mmsghdr* messages, unsigned count, int flags, timespec* length) {
  return transfer(descriptor, POLLIN, flags & MSG_DONTWAIT,
                  [&] { return ::recvmmsg(descriptor, messages, count, flags, length); });
}
int eventfd_read_(int descriptor, eventfd_t* value) {
  return transfer(descriptor, POLLIN, false, [&] { return ::eventfd_read(descriptor, value); });
}
int eventfd_write_(int descriptor, eventfd_t value) {
  note_written(descriptor);
  return transfer(descriptor, POLLOUT, false, [&] { return ::eventfd_write(descriptor, value); });
}
ssize_t write_(int descriptor, const void* from, size_t bytes) {
  note_written(descriptor);
  return transfer(descriptor, POLLOUT, false, [&] { return ::write(descriptor, from, bytes); }, bytes);
}
ssize_t writev_(int descriptor, const iovec* from, int count) {
  note_written(descriptor);
  return transfer(descriptor, POLLOUT, false, [&] { return ::writev(descriptor, from, count); });
}
ssize_t send_(int descriptor, const void* from, size_t bytes, int flags) {
  note_written(descriptor);
  return transfer(descriptor, POLLOUT, flags & MSG_DONTWAIT, [&] { return ::send(descriptor, from, bytes, flags); });
}
ssize_t sendto_(int descriptor, const void* from, size_t bytes, int flags, const sockaddr* to, socklen_t length) {
  note_written(descriptor);
  return transfer(descriptor, POLLOUT, flags & MSG_DONTWAIT,
                  [&] { return ::sendto(descriptor, from, bytes, flags, to, length); });
}
ssize_t sendmsg_(int descriptor, const msghdr* message, int flags) {
  note_written(descriptor);
  return transfer(descriptor, POLLOUT, flags & MSG_DONTWAIT, [&] { return ::sendmsg(descriptor, message, flags); });
}
int socketpair_(int domain, int type, int protocol, int ends[2]) {
  int result = ::socketpair(domain, type, protocol, ends);
  if (result == 0 && is_watching_waits && !within_handler()) {
    KeepErrno keep;
    uint64_t one = channel_of(ends[0]), other = channel_of(ends[1]);
    std::lock_guard<std::mutex> lock(channels().mutex);
    channels().other_end[one] = other;
    channels().other_end[other] = one;
    channels().written.erase(one);  // entries of closed descriptors
    channels().written.erase(other);
  }
  return result;
}

// `call(blocks)` waits if `blocks` is true. `ready(result)` returns the descriptors that are ready.
template <class Call, class Ready>
int wait_for_descriptors(int64_t requested, Call call, Ready ready) {
  if (int count = call(false)) return count;
  Blocked blocked(WaitFor::Descriptor, requested);
  if (int count = call(false)) {
    blocked.never_mind();
    return count;
  }
  int result = call(true);
  blocked.over(result, ready(result));
  return result;
}

Descriptors ready_of(const pollfd* all, nfds_t count, int result) {
  Descriptors ready;
  for (nfds_t i = 0; result > 0 && i < count; ++i)
    if (all[i].revents) ready.push_back(all[i].fd);
  return ready;
}

int poll_(pollfd* all, nfds_t count, int milliseconds) {
  if (milliseconds == 0 || !counts()) return ::poll(all, count, milliseconds);
  return wait_for_descriptors(
      int64_t(milliseconds) * 1000000, [&](bool blocks) { return ::poll(all, count, blocks ? milliseconds : 0); },
      [&](int result) { return ready_of(all, count, result); });
}

int ppoll_(pollfd* all, nfds_t count, const timespec* length, const sigset_t* mask) {
  if ((length && length_ns(length) == 0) || !counts()) return ::ppoll(all, count, length, mask);
  timespec none{0, 0};
  return wait_for_descriptors(
      length ? length_ns(length) : 0, [&](bool blocks) { return ::ppoll(all, count, blocks ? length : &none, mask); },
      [&](int result) { return ready_of(all, count, result); });
}

int select_(int count, fd_set* reading, fd_set* writing, fd_set* others, timeval* length) {
  int64_t requested = length ? length->tv_sec * 1000000000ll + length->tv_usec * 1000ll : 0;
  bool sleeps = count == 0 && sleeps_recorded > 0;  // Python 3.10's time.sleep
  if ((length && requested == 0) || sleeps || !counts()) return ::select(count, reading, writing, others, length);
  fd_set* sets[3] = {reading, writing, others};
  fd_set requested_sets[3];
  for (int i = 0; i < 3; ++i)
    if (sets[i]) requested_sets[i] = *sets[i];
  auto call = [&](bool blocks) {
    for (int i = 0; i < 3; ++i)
      if (sets[i]) *sets[i] = requested_sets[i];  // the previous call has overwritten it
    timeval none{0, 0};
    return ::select(count, reading, writing, others, blocks ? length : &none);
  };
  return wait_for_descriptors(requested, call, [&](int result) {
    Descriptors ready;
    for (int descriptor = 0; result > 0 && descriptor < count; ++descriptor)
      if (reading && FD_ISSET(descriptor, reading)) ready.push_back(descriptor);
    return ready;
  });
}

int epoll_wait_(int epoll, epoll_event* events, int most, int milliseconds) {
  if (milliseconds == 0 || !counts()) return ::epoll_wait(epoll, events, most, milliseconds);
  return wait_for_descriptors(
      int64_t(milliseconds) * 1000000, [&](bool blocks) { return ::epoll_wait(epoll, events, most, blocks ? milliseconds : 0); },
      [&](int result) {
        Descriptors ready;
        for (int i = 0; i < result; ++i) ready.push_back(events[i].data.fd);
        return ready;
      });
}

pid_t wait4_(pid_t process, int* status, int options, rusage* usage) {
  if ((options & WNOHANG) || !counts()) return ::wait4(process, status, options, usage);
  if (pid_t over = ::wait4(process, status, options | WNOHANG, usage)) return over;
  Blocked blocked(WaitFor::Process);
  pid_t result = ::wait4(process, status, options, usage);
  blocked.over(result, Descriptors{});
  return result;
}
pid_t waitpid_(pid_t process, int* status, int options) { return wait4_(process, status, options, nullptr); }
int waitid_(idtype_t type, id_t id, siginfo_t* info, int options) {
  if ((options & WNOHANG) || !counts()) return ::waitid(type, id, info, options);
  siginfo_t about = {};
  if (::waitid(type, id, &about, options | WNOHANG) != 0) return -1;
  if (about.si_pid != 0) {
    if (info) *info = about;
    return 0;
  }
  Blocked blocked(WaitFor::Process);
  int result = ::waitid(type, id, info, options);
  blocked.over(result, Descriptors{});
  return result;
}
pid_t wait_(int* status) { return wait4_(-1, status, 0, nullptr); }
pid_t wait3_(int* status, int options, rusage* usage) { return wait4_(-1, status, options, usage); }

// Signals come from outside the program, so such a wait takes the measured time.
template <class Wait>
int wait_for_signal(const timespec* length, Wait wait) {
  if ((length && length_ns(length) == 0) || !counts()) return wait();
  Blocked blocked(WaitFor::Time, length ? length_ns(length) : 0);
  int result = wait();
  bool timed_out = length && result < 0 && errno == EAGAIN;
  blocked.over(timed_out ? 0 : result, Descriptors{});
  return result;
}
int pause_() {
  return wait_for_signal(nullptr, [] { return ::pause(); });
}
int sigsuspend_(const sigset_t* mask) {
  return wait_for_signal(nullptr, [&] { return ::sigsuspend(mask); });
}
int sigtimedwait_(const sigset_t* set, siginfo_t* about, const timespec* length) {
  timespec none{0, 0};
  if (int pending = counts() ? ::sigtimedwait(set, about, &none) : 0; pending > 0) return pending;
  return wait_for_signal(length, [&] { return length ? ::sigtimedwait(set, about, length) : ::sigwaitinfo(set, about); });
}
int sigwaitinfo_(const sigset_t* set, siginfo_t* about) { return sigtimedwait_(set, about, nullptr); }
int sigwait_(const sigset_t* set, int* signal) {
  for (;;) {
    int result = sigwaitinfo_(set, nullptr);
    if (result > 0) *signal = result;
    if (result > 0 || errno != EINTR) return result > 0 ? 0 : errno;
  }
}

// A lock of a file counts as held by another process.
int flock_(int descriptor, int operation) {
  if ((operation & (LOCK_NB | LOCK_UN)) || !counts()) return ::flock(descriptor, operation);
  if (::flock(descriptor, operation | LOCK_NB) == 0) return 0;
  Blocked blocked(WaitFor::Lock);
  int result = ::flock(descriptor, operation);
  blocked.over(result, Descriptors{});
  return result;
}
int fcntl_(int descriptor, int command, ...) {
  va_list rest;
  va_start(rest, command);
  void* argument = va_arg(rest, void*);
  va_end(rest);
  bool waits = command == F_SETLKW || command == F_OFD_SETLKW;
  if (!waits || !counts()) return ::fcntl(descriptor, command, argument);
  if (::fcntl(descriptor, command == F_SETLKW ? F_SETLK : F_OFD_SETLK, argument) == 0) return 0;
  Blocked blocked(WaitFor::Lock);
  int result = ::fcntl(descriptor, command, argument);
  blocked.over(result, Descriptors{});
  return result;
}
int lockf_(int descriptor, int command, off_t length) {
  if (command != F_LOCK || !counts()) return ::lockf(descriptor, command, length);
  if (::lockf(descriptor, F_TLOCK, length) == 0) return 0;
  Blocked blocked(WaitFor::Lock);
  int result = ::lockf(descriptor, command, length);
  blocked.over(result, Descriptors{});
  return result;
}

int clock_nanosleep_(clockid_t clock, int flags, const timespec* length, timespec* rest) {
  if (sleeps_recorded > 0 || !counts()) return ::clock_nanosleep(clock, flags, length, rest);
  int64_t requested = flags & TIMER_ABSTIME ? until_ns(clock, length) : length_ns(length);
  int64_t since = now_ns();
  int result = ::clock_nanosleep(clock, flags, length, rest);
  KeepErrno keep;
  if (result == EINTR && rest && !(flags & TIMER_ABSTIME))
    requested -= length_ns(rest);
  else if (result != 0)
    requested = now_ns() - since;
  record_wait(WaitFor::Time, requested);
  return result;
}
int nanosleep_(const timespec* length, timespec* rest) {
  int error = clock_nanosleep_(CLOCK_MONOTONIC, 0, length, rest);
  if (error == 0) return 0;
  errno = error;
  return -1;
}

int usleep_(useconds_t length) {
  timespec whole{time_t(length / 1000000), long(length % 1000000) * 1000};
  return nanosleep_(&whole, nullptr);
}
unsigned sleep_(unsigned seconds) {
  timespec whole{time_t(seconds), 0}, rest{};
  return nanosleep_(&whole, &rest) == 0 ? 0 : unsigned(rest.tv_sec + (rest.tv_nsec > 0));
}

// `shared`: the semaphore is shared between processes, so the posting thread may belong to another process.
template <class Wait>
int wait_for_lock(sem_t* semaphore, int64_t requested, bool shared, Wait wait) {
  if (!counts()) return wait();
  if (::sem_trywait(semaphore) == 0) return 0;
  WaitForLock lock(semaphore);
  int64_t deadline = now_ns() + requested;
  int64_t queued = shared ? queued_ns() : -1, since = now_ns();
  if (Interrupted first = interrupted_before(semaphore, requested); requested > 0 && first.object) {
    requested = first.requested;
    since = first.since;
  }
  int result = wait();
  KeepErrno keep;
  constexpr int64_t kRound = 10000;  // the deadline was computed some microseconds before this call
  int64_t signal = lock.signal();
  if (result != 0 && errno == ETIMEDOUT)
    record_wait(WaitFor::Lock, (requested + kRound / 2) / kRound * kRound);
  else if (result != 0 && errno == EINTR && requested > 0)
    interrupted = {semaphore, deadline, requested, since, queued, 0, now_ns() - since, WaitFor::Lock};
  else if (signal && result == 0)
    record_resume(signal);
  else if (shared)
    record_wait(WaitFor::Lock, now_ns() - since - queued_since(queued));
  return result;
}

int sem_wait_(sem_t* semaphore) {
  return wait_for_lock(semaphore, 0, false, [&] { return ::sem_wait(semaphore); });
}
int sem_clockwait_(sem_t* semaphore, clockid_t clock, const timespec* deadline) {
  return wait_for_lock(semaphore, until_ns(clock, deadline), false, [&] { return ::sem_clockwait(semaphore, clock, deadline); });
}
int sem_timedwait_(sem_t* semaphore, const timespec* deadline) {
  return wait_for_lock(semaphore, until_ns(CLOCK_REALTIME, deadline), false,
                       [&] { return ::sem_timedwait(semaphore, deadline); });
}
int shared_sem_wait_(sem_t* semaphore) {
  return wait_for_lock(semaphore, 0, true, [&] { return ::sem_wait(semaphore); });
}
int shared_sem_timedwait_(sem_t* semaphore, const timespec* deadline) {
  return wait_for_lock(semaphore, until_ns(CLOCK_REALTIME, deadline), true, [&] { return ::sem_timedwait(semaphore, deadline); });
}
int sem_post_(sem_t* semaphore) {
  if (waiters_count.load() > 0 && counts()) {
    KeepErrno keep;
    signal_waiters(semaphore);
  }
  return ::sem_post(semaphore);
}

int pthread_create_(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* argument) {
  if (!counts()) return ::pthread_create(thread, attributes, run, argument);
  auto started = std::make_unique<Started>(Started{run, argument, record_signal()});
  int error = ::pthread_create(thread, attributes, &start_thread, started.get());
  if (error == 0) (void)started.release();
  return error;
}

template <class Function>
void* address(Function* function) {
  return reinterpret_cast<void*>(function);
}

// These are not replaced: opening a FIFO, since it cannot be tested whether it would block; pselect and epoll_pwait, since the
// interpreter does not call them; message queues, aio, io_uring and System V semaphores, since Python has no functions for them;
// fsync and similar calls, since they wait for a disk of this machine.
const Replacements& replacements(bool shared_semaphores) {
  static const auto* common = new Replacements{
      {"read", address(&read_)},
      {"readv", address(&readv_)},
      {"recv", address(&recv_)},
      {"recvfrom", address(&recvfrom_)},
      {"recvmsg", address(&recvmsg_)},
      {"accept", address(&accept_)},
      {"accept4", address(&accept4_)},
      {"connect", address(&connect_)},
      {"write", address(&write_)},
      {"writev", address(&writev_)},
      {"send", address(&send_)},
      {"sendto", address(&sendto_)},
      {"sendmsg", address(&sendmsg_)},
      {"socketpair", address(&socketpair_)},
      {"poll", address(&poll_)},
      {"ppoll", address(&ppoll_)},
      {"select", address(&select_)},
      {"epoll_wait", address(&epoll_wait_)},
      {"wait4", address(&wait4_)},
      {"waitpid", address(&waitpid_)},
      {"waitid", address(&waitid_)},
      {"clock_nanosleep", address(&clock_nanosleep_)},
      {"nanosleep", address(&nanosleep_)},
      {"usleep", address(&usleep_)},
      {"sleep", address(&sleep_)},
      {"wait", address(&wait_)},
      {"wait3", address(&wait3_)},
      {"pause", address(&pause_)},
      {"sigsuspend", address(&sigsuspend_)},
      {"sigwait", address(&sigwait_)},
      {"sigwaitinfo", address(&sigwaitinfo_)},
      {"sigtimedwait", address(&sigtimedwait_)},
      {"flock", address(&flock_)},
      {"fcntl", address(&fcntl_)},
      {"fcntl64", address(&fcntl_)},
      {"lockf", address(&lockf_)},
      {"lockf64", address(&lockf_)},
      {"recvmmsg", address(&recvmmsg_)},
      {"eventfd_read", address(&eventfd_read_)},
      {"eventfd_write", address(&eventfd_write_)},
      {"sem_wait", address(&sem_wait_)},
      {"sem_clockwait", address(&sem_clockwait_)},
      {"sem_timedwait", address(&sem_timedwait_)},
      {"sem_post", address(&sem_post_)},
      {"pthread_create", address(&pthread_create_)},
      {"sigaction", address(&sigaction_)},
      {"signal", address(&signal_)},
  };
  static const auto* multiprocessing = [] {
    auto* copy = new Replacements(*common);
    (*copy)["sem_wait"] = address(&shared_sem_wait_);
    (*copy)["sem_timedwait"] = address(&shared_sem_timedwait_);
    return copy;
  }();
  return shared_semaphores ? *multiprocessing : *common;
}

// The folders in which torch, Triton and this package are installed.
std::vector<std::string>& folders_left_alone() {
  static auto* folders = new std::vector<std::string>();
  return *folders;
}

const Replacements& replacements_for(const std::string& library) {
  return replacements(library.find("_multiprocessing") != std::string::npos);
}

}  // namespace

WaitsAside::WaitsAside() { ++aside; }
WaitsAside::~WaitsAside() { --aside; }

void settle_interrupted() {
  if (interrupted.object && counts()) end_interrupted(std::exchange(interrupted, {}));
}

int64_t take_start_signal() { return std::exchange(start_signal, 0); }
int32_t works_for() {
  if (by_python || backwards_count.load() == 0 || torch::autograd::get_current_graph_task_id() < 0) return -1;
  std::lock_guard<std::mutex> lock(backwards().mutex);
  const auto& threads = backwards().threads;
  if (threads.empty() || std::find(threads.begin(), threads.end(), recording_thread()) != threads.end()) return -1;
  return threads.back();
}

void watch_new_libraries() {
  static std::mutex mutex;
  static unsigned long long watched = 0;
  if (!is_watching_waits) return;
  std::lock_guard<std::mutex> lock(mutex);
  unsigned long long loaded = libraries_loaded();
  if (loaded == watched) return;
  replace_in_libraries(folders_left_alone(), &replacements_for);
  watched = loaded;
}

void watch_waits(bool on, const std::vector<std::string>& left_alone) {
  static bool forks = false;
  if (!std::exchange(forks, true)) pthread_atfork(nullptr, nullptr, [] { is_watching_waits = false; });
  by_python = true;
  if (on) {
    count_handlers();
    folders_left_alone() = left_alone;
  }
  is_watching_waits = on;
  watch_new_libraries();
}

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("watch_waits(bool on, str[] left_alone) -> ()",  // folders, with trailing slashes
        [](bool on, const std::vector<std::string>& left_alone) { watch_waits(on, left_alone); });
  m.def("set_waits_aside(bool begin) -> ()", [](bool begin) { aside += begin ? 1 : -1; });
  m.def("set_sleep_recorded(bool begin) -> ()", [](bool begin) { sleeps_recorded += begin ? 1 : -1; });
  // Between these two calls, autograd's threads work for the current thread.
  m.def("begin_backward() -> int", [] { return int64_t(begin_backward()); });
  m.def("end_backward(int thread) -> ()", [](int64_t thread) { end_backward(int32_t(thread)); });
  m.def("within_machinery() -> bool", &within_machinery);
  // Hand-overs between threads that handover.py observes. 0: not recorded.
  m.def("record_signal() -> int", [] { return counts() && !within_machinery() ? record_signal() : int64_t(0); });
  m.def("record_resume(int signal) -> ()", [](int64_t signal) {
    if (counts() && !within_machinery()) record_resume(signal);
  });
  m.def("record_wait(int nanoseconds) -> ()", [](int64_t ns) { record_wait(WaitFor::Time, ns); });
}

}  // namespace bringup

#include "python/handlers.h"

#include <pthread.h>

#include <array>
#include <atomic>

// Note [Signal handlers]
// A handler may interrupt malloc, or the recorder while it holds its lock. The interpreter's handlers write to descriptors
// (signal.set_wakeup_fd, faulthandler), and C code of the program may post semaphores in a handler; those calls are watched too.
// So each handler of the program is called by a handler of the core, which stops the recording of waits in this thread. If a
// handler leaves by longjmp, it counts as still running, and no further wait of its thread is recorded.
namespace bringup {
namespace {

// The threads that run handlers. This is not a thread_local variable, since a thread's first access to one may allocate.
std::array<std::atomic<pthread_t>, 64> handling;
std::atomic<int> handlers_running{0}, without_place{0};  // `without_place`: handlers that found no free entry

using Handler = void (*)(int, siginfo_t*, void*);
std::array<std::atomic<Handler>, NSIG> of_program;

void on_signal(int signal, siginfo_t* about, void* context) {
  ++handlers_running;
  std::atomic<pthread_t>* mine = nullptr;
  for (auto& thread : handling) {
    pthread_t nobody = 0;
    if (!thread.compare_exchange_strong(nobody, pthread_self())) continue;
    mine = &thread;
    break;
  }
  if (!mine) ++without_place;
  of_program[signal].load()(signal, about, context);  // A handler that takes one argument ignores the others.
  if (mine)
    *mine = 0;
  else
    --without_place;
  --handlers_running;
}

bool is_function(const struct sigaction& action) { return action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN; }

}  // namespace

bool within_handler() {
  if (handlers_running == 0) return false;
  if (without_place > 0) return true;  // It may be this thread.
  for (auto& thread : handling)
    if (thread == pthread_self()) return true;
  return false;
}

int sigaction_(int signal, const struct sigaction* action, struct sigaction* before) {
  if (signal <= 0 || signal >= NSIG) return ::sigaction(signal, action, before);
  Handler installed = of_program[signal];
  struct sigaction counted;
  if (action && is_function(*action) && action->sa_sigaction != &on_signal) {
    counted = *action;
    counted.sa_sigaction = &on_signal;
    of_program[signal] = action->sa_sigaction;
    action = &counted;
  }
  int result = ::sigaction(signal, action, before);
  if (result == 0 && before && before->sa_sigaction == &on_signal) before->sa_sigaction = installed;
  return result;
}

sighandler_t signal_(int signal, sighandler_t handler) {
  struct sigaction action = {}, before;
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  return sigaction_(signal, &action, &before) == 0 ? before.sa_handler : SIG_ERR;
}

void count_handlers() {
  for (int signal = 1; signal < NSIG; ++signal) {
    struct sigaction action;
    if (::sigaction(signal, nullptr, &action) == 0 && is_function(action)) sigaction_(signal, &action, nullptr);
  }
}

}  // namespace bringup

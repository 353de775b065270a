// The program's signal handlers. Code that runs in a signal handler must not allocate or take a lock.
#pragma once
#include <signal.h>

namespace bringup {

bool within_handler();  // True if the calling thread is running a signal handler.

// Starts to count the running handlers, for the handlers that the process has already installed.
void count_handlers();
// Replacements of the C library's functions. Handlers installed with these are counted too; a query returns the program's
// handler.
int sigaction_(int signal, const struct sigaction* action, struct sigaction* before);
sighandler_t signal_(int signal, sighandler_t handler);

}  // namespace bringup

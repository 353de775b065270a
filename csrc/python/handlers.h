// Signal handlers of the program: in them nothing may allocate or take a lock.
#pragma once
#include <signal.h>

namespace bringup {

bool within_handler();  // true if the calling thread runs one

// From now on the handlers that the process has installed are counted.
void count_handlers();
// In place of the C library's functions: handlers that they install are counted, and read back as they were given.
int sigaction_(int signal, const struct sigaction* action, struct sigaction* before);
sighandler_t signal_(int signal, sighandler_t handler);

}  // namespace bringup

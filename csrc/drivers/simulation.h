// A program that simulates hardware, in a process of its own: bytes go to and from its descriptor 0. It may be killed and may
// hang.
#pragma once
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

// Functions that return text return why they failed, and then the process has ended; the text is empty on success.
class Simulation {
 public:
  explicit operator bool() const { return process_ != 0; }

  // Starts the program that an environment variable names. Another variable has the seconds after which a simulation that neither
  // takes nor gives bytes is ended.
  std::string start(const char* variable, const char* limit_variable) {
    const char *program = getenv(variable), *limit = getenv(limit_variable);
    int ends[2];
    seconds_ = limit ? atof(limit) : kSilence;
    if (!program) return std::string(variable) + " names no program that simulates the chip";
    if (!(seconds_ > 0)) return std::string(limit_variable) + " must be a positive number of seconds, got " + limit;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return "there is no socket for the simulation";
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, ends[1], 0);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);  // Ctrl-C is for the program
    char* arguments[] = {const_cast<char*>(program), nullptr};
    int code = posix_spawn(&process_, program, &files, &attributes, arguments, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    close(ends[1]);
    socket_ = ends[0];
    if (code == 0) return "";
    process_ = 0;
    close(socket_);
    return std::string("the simulation ") + program + " does not start: " + strerror(code);
  }

  // Returns the status with which the process ended.
  int stop() {
    int status = 0;
    if (!process_) return status;
    kill(process_, SIGKILL);
    return end();
  }

  std::string send(const char* data, size_t bytes) { return transfer(const_cast<char*>(data), bytes, false); }
  std::string receive(void* data, size_t bytes) { return transfer(static_cast<char*>(data), bytes, true); }

 private:
  int end() {
    int status = 0;
    close(socket_);
    waitpid(std::exchange(process_, 0), &status, 0);
    return status;
  }

  std::string transfer(char* data, size_t bytes, bool receives) {
    while (bytes > 0) {
      pollfd ready = {socket_, short(receives ? POLLIN : POLLOUT), 0};
      if (poll(&ready, 1, int(std::min(seconds_ * 1e3, 2e9))) == 0) {
        stop();
        char text[64];
        snprintf(text, sizeof text, "the simulation hung for %g s and was ended", seconds_);
        return text;
      }
      ssize_t count =
          receives ? recv(socket_, data, bytes, MSG_DONTWAIT) : ::send(socket_, data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (count <= 0) {
        int status = end();
        if (WIFSIGNALED(status)) return std::string("the simulation was ended by a signal: ") + strsignal(WTERMSIG(status));
        return "the simulation ended with exit code " + std::to_string(WEXITSTATUS(status));
      }
      data += count;
      bytes -= size_t(count);
    }
    return "";
  }

  static constexpr double kSilence = 60;  // chosen: a simulation reports several times a second
  double seconds_ = kSilence;
  pid_t process_ = 0;
  int socket_ = -1;
};

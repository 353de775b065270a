// Graphs: launches that are captured once and replayed, as CUDA graphs are.
#pragma once
#include "launch/worker.h"
#include "record/recorder.h"
#include "runtime/capture.h"

namespace bringup {

// Keeps a launch for replays of the graph that its stream captures, instead of enqueuing it.
void capture_launch(std::unique_ptr<Launch> launch, uint8_t flags);

}  // namespace bringup

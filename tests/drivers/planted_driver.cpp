// The OpenCL driver with a mistake that BRINGUP_PLANTED names: in a call that `prepare` sees, or in a launch. A test builds it to
// find out whether `bringup driver check` notices. Without the variable, it is the OpenCL driver.
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <map>
#include <string>

#include "driver.h"

#define bringup_driver_entry opencl_driver_entry
#include "drivers/opencl.cpp"
#undef bringup_driver_entry

namespace planted {

const bringup_driver& real() { return *opencl_driver_entry(); }

// A copy of a call that can be changed.
struct Copy {
  bringup_call call;
  std::string op;
  std::vector<bringup_argument> arguments;
  std::vector<bringup_tensor> tensors, outputs;
  std::deque<std::vector<int64_t>> numbers;

  explicit Copy(const bringup_call& c)
      : call(c),
        op(c.op),
        arguments(c.arguments, c.arguments + c.argument_count),
        tensors(c.tensors, c.tensors + c.tensor_count),
        outputs(c.outputs, c.outputs + c.output_count) {}
  bool is(const char* name) const { return op == std::string("aten::") + name; }
  void rename(const char* name) { op = std::string("aten::") + name; }
  int64_t* sizes(bringup_tensor& tensor) {
    auto& copy = numbers.emplace_back(tensor.sizes, tensor.sizes + tensor.dims);
    tensor.sizes = copy.data();
    return copy.data();
  }
  int64_t* strides(bringup_tensor& tensor) {
    auto& copy = numbers.emplace_back(tensor.strides, tensor.strides + tensor.dims);
    tensor.strides = copy.data();
    return copy.data();
  }
  const bringup_call* done() {
    call.op = op.c_str(), call.arguments = arguments.data(), call.tensors = tensors.data(), call.outputs = outputs.data();
    return &call;
  }
};

void make_contiguous(Copy& c, bringup_tensor& tensor) {
  if (tensor.dims < 1) return;
  int64_t next = 1, *strides = c.strides(tensor);
  for (int d = tensor.dims - 1; d >= 0; --d) strides[d] = next, next *= tensor.sizes[d];
}

using Change = std::function<void(Copy&)>;

Change renamed(const char* from, const char* to) {
  return [=](Copy& c) {
    if (c.is(from)) c.rename(to);
  };
}

const std::map<std::string, Change>& changes() {
  static const std::map<std::string, Change> all = {
      {"relu_is_abs", renamed("relu", "abs")},
      {"sub_adds", renamed("sub.Tensor", "add.Tensor")},
      {"mean_is_sum", renamed("mean.dim", "sum.dim_IntList")},
      {"le_is_lt", renamed("le.Tensor", "lt.Tensor")},
      {"maximum_is_minimum", renamed("maximum", "minimum")},
      {"adam_decays_as_adamw", renamed("_fused_adam_", "_fused_adamw_")},
      {"gelu_by_tanh",
       [](Copy& c) {
         if (c.is("gelu")) c.arguments[1].kind = BRINGUP_STRING, c.arguments[1].string = "tanh";
       }},
      {"layer_norm_drops_eps",
       [](Copy& c) {
         if (c.is("native_layer_norm")) c.arguments[4].number = 0;
       }},
      {"layer_norm_drops_bias",
       [](Copy& c) {
         if (c.is("native_layer_norm")) c.arguments[3].kind = BRINGUP_NONE;
       }},
      {"mul_ignores_strides",
       [](Copy& c) {
         if (c.is("mul.Tensor")) make_contiguous(c, c.tensors[0]);
       }},
      {"copy_ignores_strides_of_the_target",
       [](Copy& c) {
         if (c.is("copy_")) make_contiguous(c, c.tensors[0]);
       }},
      {"mm_ignores_strides",
       [](Copy& c) {
         if (c.is("mm")) make_contiguous(c, c.tensors[1]);
       }},
      {"exp_leaves_the_last_row",
       [](Copy& c) {
         if (!c.is("exp") || c.outputs.empty() || c.outputs[0].dims < 1 || c.outputs[0].sizes[0] < 2) return;
         --c.sizes(c.outputs[0])[0], --c.sizes(c.tensors[0])[0];
       }},
      {"tanh_writes_beyond_the_end",
       [](Copy& c) {
         if (!c.is("tanh") || c.outputs.empty() || c.outputs[0].dims < 1) return;
         ++c.sizes(c.outputs[0])[0], ++c.sizes(c.tensors[0])[0];
       }},
      {"sum_over_another_dimension",
       [](Copy& c) {
         if (!c.is("sum.dim_IntList") || c.arguments[1].count != 1) return;
         auto& dims = c.numbers.emplace_back(c.arguments[1].integers, c.arguments[1].integers + 1);
         dims[0] = (dims[0] + 1) % std::max(c.tensors[0].dims, 1);
         c.arguments[1].integers = dims.data();
       }},
      {"softmax_backward_of_logs", renamed("_softmax_backward_data", "_log_softmax_backward_data")},
      {"nll_ignores_no_index",
       [](Copy& c) {
         if (c.is("nll_loss_forward")) c.arguments[4].integer = -1000;
       }},
      {"embedding_backward_keeps_the_padding",
       [](Copy& c) {
         if (c.is("embedding_dense_backward")) c.arguments[3].integer = -1;
       }},
  };
  return all;
}

std::string mistake() {
  const char* name = getenv("BRINGUP_PLANTED");
  return name ? name : "";
}

struct Kernel {
  bringup_kernel* inner;
  std::string op;
  int values, tensors;
  std::vector<double> first;
};

int prepare(bringup_device* device, const bringup_call* call, bringup_kernel** kernel, const char** why) {
  std::string op = call->op;
  if (mistake() == "rsqrt_cannot_be_prepared" && op == "aten::rsqrt") abort();
  Copy copy(*call);
  if (auto change = changes().find(mistake()); change != changes().end()) change->second(copy);
  bringup_kernel* inner = nullptr;
  int status = real().prepare(device, copy.done(), &inner, why);
  if (status == BRINGUP_OK)
    *kernel = reinterpret_cast<bringup_kernel*>(new Kernel{inner, op, call->argument_count, call->tensor_count, {}});
  return status;
}

// Mistakes of a launch.
int launch(bringup_stream* stream, bringup_kernel* kernel, const bringup_launch* request) {
  auto* own = reinterpret_cast<Kernel*>(kernel);
  bringup_launch changed = *request;
  std::vector<double> values(request->values, request->values + own->values);
  std::string name = mistake();
  if (name == "add_ignores_alpha" && own->op == "aten::add.Tensor") values[2] = 1;
  if (name == "add_keeps_its_first_alpha" && own->op == "aten::add.Tensor") {
    if (own->first.empty()) own->first = values;
    values = own->first;
  }
  std::vector<void*> addresses;
  if (name == "sigmoid_starts_one_element_late" && own->op == "aten::sigmoid") {
    addresses.assign(request->addresses, request->addresses + 2);
    addresses[0] = static_cast<float*>(addresses[0]) + 1;
    changed.addresses = addresses.data();
  }
  if (name == "mul_in_place_is_lost" && own->op == "aten::mul_.Tensor") return BRINGUP_OK;
  if (name == "sqrt_crashes" && own->op == "aten::sqrt") *static_cast<volatile int*>(nullptr) = 0;
  if (name == "log_never_ends" && own->op == "aten::log")
    for (;;) usleep(1000);
  if (name.starts_with("add_")) changed.values = values.data();
  return real().launch(stream, own->inner, &changed);
}

void release(bringup_kernel* kernel) {
  auto* own = reinterpret_cast<Kernel*>(kernel);
  real().release(own->inner);
  delete own;
}

}  // namespace planted

extern "C" __attribute__((visibility("default"))) const bringup_driver* bringup_driver_entry() {
  static const bringup_driver driver = [] {
    bringup_driver own = planted::real();
    own.name = "planted";
    own.prepare = planted::prepare;
    own.launch = planted::launch;
    own.release = planted::release;
    return own;
  }();
  return &driver;
}

#include "record/parts.h"

#include "json.h"

namespace bringup {

thread_local int Unrecorded::depth = 0;

namespace {

bool is_sparse(const at::Tensor& tensor) { return tensor.defined() && tensor.layout() != c10::kStrided; }

}  // namespace

std::vector<at::Tensor> parts_of(const at::Tensor& tensor) {
  switch (tensor.layout()) {
    case c10::kSparse:
      return {tensor._values(), tensor._indices()};
    case c10::kSparseCsr:
    case c10::kSparseBsr:
      return {tensor.values(), tensor.crow_indices(), tensor.col_indices()};
    case c10::kSparseCsc:
    case c10::kSparseBsc:
      return {tensor.values(), tensor.ccol_indices(), tensor.row_indices()};
    default:
      return {tensor};
  }
}

PartsRow::PartsRow(const Op& op, const c10::IValue* arguments, const Stream& stream)
    : op_(op), stream_(stream), line_(current_line()) {
  const auto& schema = op.handle.schema().arguments();
  for (size_t i = 0; i < op.args.size(); ++i) {
    arguments_ << (i ? "," : "") << json_text(schema[i].name()) << ":";
    describe(arguments[i], op.args[i].written, arguments_);
    if (!arguments[i].isTensor() || !is_sparse(arguments[i].toTensor())) continue;
    arguments_ << "," << json_text(schema[i].name() + ".sizes") << ":[";
    const char* separator = "";
    for (int64_t size : arguments[i].toTensor().sizes()) {
      arguments_ << separator << size;
      separator = ",";
    }
    arguments_ << "]";
  }
}

void PartsRow::describe(const c10::IValue& value, bool written, Text& text) {
  if (value.isTensor()) {
    text << "{\"tensor\":" << slots_ << "}";
    describe(value.toTensor(), written);
  } else if (value.isTensorList()) {
    text << "[";
    const char* separator = "";
    for (const at::Tensor& tensor : value.toTensorVector()) {
      text << separator;
      describe(c10::IValue(tensor), written, text);
      separator = ",";
    }
    text << "]";
  } else {
    int none = 0;
    write_value(text, value, true, none);
  }
}

void PartsRow::describe(const at::Tensor& tensor, bool written) {
  sparse_ |= is_sparse(tensor);
  std::vector<at::Tensor> parts = tensor.defined() ? parts_of(tensor) : std::vector<at::Tensor>{tensor};
  for (const at::Tensor& part : parts) {
    int storage = -1;
    if (part.defined() && part.device().type() == kChip) {
      const void* memory = part.storage().data();
      auto same = std::find_if(uses_.begin(), uses_.end(), [&](const auto& use) { return use.first == memory; });
      storage = int(same - uses_.begin());
      if (same == uses_.end()) uses_.emplace_back(memory, false);
      uses_[size_t(storage)].second |= written;
    }
    inputs_ << (slots_++ ? "," : "");
    write_meta(inputs_, part.defined() ? meta_of(part) : TensorMeta(), storage, written);
  }
}

void PartsRow::record(const Stack& results, uint8_t flags) {
  Text outputs;
  const char* separator = "";
  auto one = [&](const at::Tensor& tensor) {
    if (!tensor.defined() || tensor.device().type() != kChip) return;
    sparse_ |= is_sparse(tensor);
    for (const at::Tensor& part : parts_of(tensor)) {
      outputs << separator;
      write_meta(outputs, meta_of(part), -1, true);
      uses_.emplace_back(part.storage().data(), true);
      separator = ",";
    }
  };
  for (size_t i = 0; i < op_.returns.size(); ++i) {
    if (op_.returns[i].kind == ReturnInfo::Argument) continue;
    if (results[i].isTensor()) one(results[i].toTensor());
    if (results[i].isTensorList())
      for (const at::Tensor& tensor : results[i].toTensorVector()) one(tensor);
  }
  std::string name = sparse_ ? "sparse::" + op_.name.substr(op_.name.find("::") + 2) : op_.name;
  Text text;
  text << "{\"op\":" << json_text(name) << ",\"inputs\":[" << inputs_.str() << "],\"outputs\":[" << outputs.str()
       << "],\"args\":{" << arguments_.str() << "}}";
  record_described(text.str(), stream_, line_, uses_, flags);
}

}  // namespace bringup

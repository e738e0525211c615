// Where the weights of an ONNX file lie: the one thing of it that libr1v reads and changes, without protobuf's library.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace r1v::ort {

// An ONNX file with other locations of its initializers' external data; all else is as it was.
// `renamed`: location -> what it is to be. Throws kBundle, naming `where`: this is no protobuf message.
std::string with_locations(std::string_view model, const std::function<std::string(const std::string&)>& renamed,
                           const std::string& where);

}  // namespace r1v::ort

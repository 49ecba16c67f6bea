// compress_executor: eleven arguments, one file in, three files out (executor.hpp). Arguments and files are
// handled here, the coder is behind compress().
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <stdexcept>
#include <string>

#include "bytes.hpp"
#include "executor.hpp"

namespace slimrun {
namespace {

constexpr int kArguments = 11;
constexpr uint64_t kFractalBytes = 512;

constexpr char kHelp[] =
    "compress_executor dimK dimN isTight k_value n_value compressType isTiling in.bin out.bin index.bin "
    "info.bin\n\n"
    "Codes an int8 matrix that lies in fractals of 16 x 32 as (dimK, dimN, 16, 32).\n"
    "  dimK, dimN     1 to 50000: columns and rows of fractals\n"
    "  isTight        1: an index of 8 bytes a tile\n"
    "  k_value        1\n"
    "  n_value        1\n"
    "  compressType   0 (weights of few values, W8A8S) or 1 (weights of many zeros, W16A16S)\n"
    "  isTiling       0\n"
    "  in.bin         int8, dimK * dimN * 512 bytes\n"
    "  out.bin        written: the coded weights\n"
    "  index.bin      written: 8 bytes a tile of 8 x 8 fractals\n"
    "  info.bin       written: tiling_n, tiling_k, bytes of out.bin; uint32, little-endian\n\n"
    "compress_executor --container   prints name and version of the container that it writes\n";

/// A whole number from `low` to `high`.
uint32_t number(const char* name, const std::string& text, int64_t low, int64_t high) {
    int64_t value = 0;
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    const bool whole = error != std::errc::invalid_argument && stop == end;
    if (whole && error == std::errc() && value >= low && value <= high) return static_cast<uint32_t>(value);
    const std::string range =
        low == high ? std::to_string(low) : std::to_string(low) + " to " + std::to_string(high);
    throw std::invalid_argument(std::string(name) + "=" + text +
                                (whole ? " is out of range" : " is not a whole number") +
                                "; allowed: " + range);
}

[[noreturn]] void fail(const char* name, const std::string& path, const char* what) {
    throw std::runtime_error(std::string(name) + "=" + path + " " + what + ": " + std::strerror(errno));
}

/// An open file that closes itself.
class File {
  public:
    explicit File(int descriptor) : descriptor_(descriptor) {}
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File() {
        if (descriptor_ >= 0) ::close(descriptor_);
    }
    int operator*() const { return descriptor_; }

  private:
    int descriptor_;
};

std::vector<uint8_t> read_input(const std::string& path, uint64_t expected) {
    // Without waiting for the other end of what is no regular file.
    const File file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat status;
    if (*file < 0 || ::fstat(*file, &status) != 0) fail("in.bin", path, "cannot be read");
    if (!S_ISREG(status.st_mode))
        throw std::invalid_argument("in.bin=" + path + " is no regular file; allowed: a regular file");
    if (static_cast<uint64_t>(status.st_size) != expected)
        throw std::invalid_argument("in.bin=" + path + " has " + std::to_string(status.st_size) +
                                    " bytes; allowed: " + std::to_string(expected) +
                                    ", which is dimK * dimN * 512");
    std::vector<uint8_t> bytes(expected);
    for (size_t at = 0; at < bytes.size();) {
        const ssize_t got = ::read(*file, bytes.data() + at, bytes.size() - at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail("in.bin", path, "cannot be read");
        if (got == 0) throw std::runtime_error("in.bin=" + path + " became shorter while it was read");
        at += static_cast<size_t>(got);
    }
    return bytes;
}

/// A file that is written under a temporary name beside its own and takes its place when all is well.
class Output {
  public:
    Output(const char* name, const std::string& path) : name_(name), path_(path) {
        if (path.empty()) throw std::invalid_argument(name_ + "= is empty; allowed: the name of a file");
        std::error_code unknown;
        const std::filesystem::file_status status = std::filesystem::status(path, unknown);
        if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status))
            throw std::invalid_argument(name_ + "=" + path +
                                        " is no regular file; allowed: a file, there or not");
    }
    Output(const Output&) = delete;
    Output& operator=(const Output&) = delete;
    ~Output() {
        if (!left_.empty()) ::unlink(left_.c_str());
    }

    void write(Bytes bytes) {
        std::string scratch = path_ + ".XXXXXX";
        const File file(::mkstemp(scratch.data()));  // mode 0600
        if (*file < 0) problem();
        left_ = scratch;
        while (bytes.size > 0) {
            const ssize_t put = ::write(*file, bytes.data, bytes.size);
            if (put < 0 && errno == EINTR) continue;
            if (put < 0) problem();
            bytes = {bytes.data + put, bytes.size - static_cast<size_t>(put)};
        }
        if (::fsync(*file) != 0) problem();
    }
    /// Puts the file in its place, from where it is removed again unless keep() is called.
    void rename() {
        if (::rename(left_.c_str(), path_.c_str()) != 0) problem();
        left_ = path_;
    }
    void keep() {
        left_.clear();
        const std::filesystem::path parent = std::filesystem::path(path_).parent_path();
        const File folder(::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_CLOEXEC));
        if (*folder >= 0) ::fsync(*folder);  // not every file system has this for folders
    }

  private:
    [[noreturn]] void problem() const { fail(name_.c_str(), path_, "cannot be written"); }

    std::string name_, path_, left_;
};

/// For a while signals that end the program wait, so that it leaves all files or none.
class Uninterrupted {
  public:
    Uninterrupted() {
        sigset_t ending;
        sigemptyset(&ending);
        for (const int signal : {SIGHUP, SIGINT, SIGTERM}) sigaddset(&ending, signal);
        ::sigprocmask(SIG_BLOCK, &ending, &before_);
    }
    Uninterrupted(const Uninterrupted&) = delete;
    Uninterrupted& operator=(const Uninterrupted&) = delete;
    ~Uninterrupted() { ::sigprocmask(SIG_SETMASK, &before_, nullptr); }

  private:
    sigset_t before_;
};

void check_names(const char* const* paths) {
    constexpr std::array<const char*, 4> names = {"in.bin", "out.bin", "index.bin", "info.bin"};
    std::array<std::filesystem::path, 4> full;
    for (size_t i = 0; i < names.size(); ++i) {
        full[i] = std::filesystem::weakly_canonical(std::filesystem::absolute(paths[i]));
        for (size_t j = 0; j < i; ++j)
            if (full[i] == full[j])
                throw std::invalid_argument(std::string(names[i]) + "=" + paths[i] + " is the same file as " +
                                            names[j] + "; allowed: four different files");
    }
}

void run(const char* const* arguments) {
    Request request;
    request.dim_k = number("dimK", arguments[0], 1, 50000);
    request.dim_n = number("dimN", arguments[1], 1, 50000);
    request.is_tight = number("isTight", arguments[2], 1, 1);
    request.k_value = number("k_value", arguments[3], 1, 1);
    request.n_value = number("n_value", arguments[4], 1, 1);
    request.compress_type = number("compressType", arguments[5], 0, 1);
    request.is_tiling = number("isTiling", arguments[6], 0, 0);
    const char* const* const paths = arguments + 7;
    Output out("out.bin", paths[1]), index("index.bin", paths[2]), info("info.bin", paths[3]);
    const std::vector<uint8_t> input =
        read_input(paths[0], uint64_t{request.dim_k} * request.dim_n * kFractalBytes);
    check_names(paths);

    const Compressed coded = compress(request, input);
    if (coded.out.size() > std::numeric_limits<uint32_t>::max())
        throw std::runtime_error("out.bin would have 4 GiB or more, and info.bin cannot hold its size");
    std::array<uint8_t, 12> numbers;
    store(numbers.data(), coded.tiling_n);
    store(numbers.data() + 4, coded.tiling_k);
    store(numbers.data() + 8, static_cast<uint32_t>(coded.out.size()));

    const Uninterrupted all_or_none;
    out.write({coded.out.data(), coded.out.size()});
    index.write({coded.index.data(), coded.index.size()});
    info.write({numbers.data(), numbers.size()});
    for (Output* const file : {&out, &index, &info}) file->rename();
    for (Output* const file : {&out, &index, &info}) file->keep();
}

int print(const char* text) {
    return std::fputs(text, stdout) < 0 || std::fflush(stdout) != 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

}  // namespace
}  // namespace slimrun

int main(int argc, char** argv) {
    using namespace slimrun;
    const std::string option = argc == 2 ? argv[1] : "";
    if (option == "--help") return print(kHelp);
    if (option == "--container") return print((std::string(kContainer) + "\n").c_str());
    if (argc != 1 + kArguments) {
        std::fputs("Please check your input params count is 11.\n", stderr);
        return EXIT_FAILURE;
    }
    std::signal(SIGXFSZ, SIG_IGN);  // a file beyond its allowed size is then an error of write()
    std::string problem;
    try {
        run(argv + 1);
        return EXIT_SUCCESS;
    } catch (const std::bad_alloc&) {
        problem = "not enough memory for the matrix";
    } catch (const std::exception& error) {
        problem = error.what();
    }
    for (char& c : problem)
        if (static_cast<unsigned char>(c) < ' ') c = '?';  // a file's name must not break the line
    std::fprintf(stderr, "compress_executor: %s\n", problem.c_str());
    return EXIT_FAILURE;
}

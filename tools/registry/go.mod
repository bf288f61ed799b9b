// A registry for tests of images: built by `make setup-test`, never part of Hutch.
module hutch.invalid/tools/registry

go 1.26.3

require github.com/google/go-containerregistry v0.22.1

//go:build tools

// Package tools pins the registry that tests of images start, checked through go.sum.
package tools

import _ "github.com/google/go-containerregistry/cmd/registry"

//go:build tools

// Package tools pins runsc: the module gVisor publishes from its "go" branch, checked through go.sum.
package tools

import _ "gvisor.dev/gvisor/runsc"

//go:build linux

package main

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// wanted are Debian packages; apt adds what they depend on.
var wanted = []string{"linux-image-cloud-arm64", "nginx-light", "haproxy", "linux-perf"}

// hooks are commands that a host may have apt run; they are for its own lists and cache.
var hooks = []string{"APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success", "DPkg::Pre-Invoke",
	"DPkg::Post-Invoke", "DPkg::Pre-Install-Pkgs", "AptCli::Hooks"}

// configure writes a configuration of apt, read after the host's own: lists, cache
// and status below dir, no hooks, and what cannot be fetched is an error.
func configure(dir string) (file string, err error) {
	state, cache := filepath.Join(dir, "state"), filepath.Join(dir, "cache")
	for _, d := range []string{filepath.Join(state, "lists", "partial"), filepath.Join(cache, "archives", "partial")} {
		if err := os.MkdirAll(d, 0o750); err != nil {
			return "", err
		}
	}
	status := filepath.Join(state, "status") // empty: nothing is installed yet
	if err := os.WriteFile(status, nil, 0o600); err != nil {
		return "", err
	}
	var text strings.Builder
	for _, h := range append([]string{"APT::Architectures"}, hooks...) {
		fmt.Fprintf(&text, "#clear %s;\n", h)
	}
	for _, o := range [][2]string{{"APT::Architecture", "arm64"}, {"APT::Architectures::", "arm64"}, {"APT::Install-Recommends", "false"},
		{"APT::Sandbox::User", "root"}, {"APT::Update::Error-Mode", "any"}, {"Acquire::Languages", "none"}, {"Debug::NoLocking", "true"},
		{"Dir::State", state}, {"Dir::State::status", status}, {"Dir::Cache", cache}} {
		fmt.Fprintf(&text, "%s %q;\n", o[0], o[1])
	}
	file = filepath.Join(dir, "apt.conf")
	return file, os.WriteFile(file, []byte(text.String()), 0o600)
}

// packages unpacks the packages wanted for arm64, and all that they need, into
// dir once and returns where. It uses the host's own apt sources with a state
// apart, so nothing on the host changes.
func packages(ctx context.Context, dir string) (root string, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	root = filepath.Join(dir, "root")
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	conf, err := configure(filepath.Join(dir, "apt"))
	if err != nil {
		return "", err
	}
	for _, args := range [][]string{{"update"}, append([]string{"install", "--download-only", "--yes"}, wanted...)} {
		if err := quietly(exec.CommandContext(ctx, "apt-get", append([]string{"-c", conf}, args...)...)); err != nil {
			return "", fmt.Errorf("fetching Debian's packages, which needs a Debian with the network: %w", err)
		}
	}
	archives := filepath.Join(dir, "apt", "cache", "archives")
	debs, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil {
		return "", err
	}
	part := root + ".part"
	if err := os.RemoveAll(part); err != nil {
		return "", err
	}
	for _, deb := range debs {
		if err := quietly(exec.CommandContext(ctx, "dpkg-deb", "--extract", deb, part)); err != nil {
			return "", err
		}
	}
	return root, os.Rename(part, root)
}

// quietly runs cmd and shows what it said only if it failed.
func quietly(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

// closure adds a program below root, its loader and the libraries that it needs
// to files, by their paths in the machine.
func closure(root, program string, files map[string]string) error {
	if files[program] != "" {
		return nil
	}
	files[program] = filepath.Join(root, program)
	f, err := elf.Open(files[program])
	if err != nil {
		return fmt.Errorf("%w: remove %s to have the packages fetched again", err, root)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name := make([]byte, p.Filesz)
		if _, err := p.ReadAt(name, 0); err != nil {
			return err
		}
		loader := strings.TrimRight(string(name), "\x00")
		files[loader] = filepath.Join(root, loader)
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, name := range libraries {
		found := ""
		for _, dir := range []string{"/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu"} {
			if _, err := os.Stat(filepath.Join(root, dir, name)); err == nil {
				found = filepath.Join(dir, name)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if strings.HasPrefix(name, "ld-linux") {
			continue // the loader
		}
		if found == "" {
			return fmt.Errorf("%s needs %s, which no package brought", program, name)
		}
		if err := closure(root, found, files); err != nil {
			return err
		}
	}
	return nil
}

package gossip_test

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"ringmain/gossip"
)

// cluster opens three regions of n nodes each over sockets.
func cluster(t testing.TB, n int) map[string][]*gossip.Gossip {
	t.Helper()
	regions := map[string][]*gossip.Gossip{"us": region(t, "us", n, nil)}
	_, seed := regions["us"][0].Addrs()
	for _, name := range []string{"eu", "ap"} {
		regions[name] = region(t, name, n, []string{seed})
	}
	waitFor(t, 30*time.Second, "everybody knows everybody", func() bool {
		return everybody(slices.Concat(regions["us"], regions["eu"], regions["ap"]), 3*n)
	})
	return regions
}

func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// The figures of DESIGN.md: GOSSIP_MEASURE=<kills> go test -run Measure -v -timeout 20m
func TestMeasure(t *testing.T) {
	kills, err := strconv.Atoi(os.Getenv("GOSSIP_MEASURE"))
	if err != nil {
		t.Skip("set GOSSIP_MEASURE to a number of kills")
	}
	for _, busy := range []bool{false, true} {
		t.Run(fmt.Sprintf("busy=%v", busy), func(t *testing.T) {
			regions := cluster(t, 5)
			if busy {
				burn(t)
			} else {
				// Three observers per region as in a real cluster.
				stop := make(chan struct{})
				var wg sync.WaitGroup
				for name, gs := range regions {
					for _, g := range gs[:3] {
						wg.Go(func() {
							for tick := time.NewTicker(500 * time.Millisecond); ; {
								select {
								case <-stop:
									tick.Stop()
									return
								case <-tick.C:
								}
								for other := range regions {
									if other != name {
										g.Claim(other, true)
									}
								}
							}
						})
					}
				}
				time.Sleep(3 * time.Second)
				before, start := cpu(t), time.Now()
				time.Sleep(20 * time.Second)
				used := cpu(t) - before
				t.Logf("idle: 15 nodes use %.2f %% of a core, %.3f %% each", 100*used.Seconds()/time.Since(start).Seconds(), 100*used.Seconds()/time.Since(start).Seconds()/15)
				close(stop)
				wg.Wait()
			}
			victims := regions["eu"]
			witness := victims[:4]
			away := append(slices.Clone(regions["us"]), regions["ap"]...)
			lanSeed, wanSeed := witness[0].Addrs()
			var home, first, elsewhere []time.Duration
			false0 := 0
			for i := range kills {
				name := fmt.Sprintf("eu-v%d", i)
				g := open(t, config("eu", name, []string{lanSeed}, []string{wanSeed}))
				waitFor(t, 30*time.Second, "newcomer known", func() bool {
					for _, w := range append(slices.Clone(witness), away...) {
						if !alive(w, name) {
							return false
						}
					}
					return true
				})
				time.Sleep(time.Duration(i*37%500) * time.Millisecond)
				start := time.Now()
				if err := g.Kill(); err != nil {
					t.Fatal(err)
				}
				start = start.Add(time.Since(start) / 2)
				waitFor(t, 30*time.Second, "death known to one", func() bool {
					return slices.ContainsFunc(witness, func(w *gossip.Gossip) bool { return !alive(w, name) })
				})
				first = append(first, time.Since(start))
				waitFor(t, 30*time.Second, "death known at home", func() bool { return nobody(witness, name) })
				home = append(home, time.Since(start))
				waitFor(t, 60*time.Second, "death known elsewhere", func() bool { return nobody(away, name) })
				elsewhere = append(elsewhere, time.Since(start))
				for _, w := range append(slices.Clone(witness), away...) {
					for _, v := range []string{"eu-1", "eu-2", "eu-3", "eu-4", "us-1", "us-2", "ap-1"} {
						if !alive(w, v) {
							false0++
						}
					}
				}
			}
			show := func(what string, d []time.Duration) {
				slices.Sort(d)
				t.Logf("%s: p50 %s, p90 %s, max %s of %d", what, d[len(d)/2].Round(time.Millisecond), d[len(d)*9/10].Round(time.Millisecond), d[len(d)-1].Round(time.Millisecond), len(d))
			}
			show("known to the first at home", first)
			show("known to all at home", home)
			show("known to all everywhere", elsewhere)
			t.Logf("sightings of falsely dead nodes: %d", false0)
		})
	}
}

// burn keeps every core busy with other processes until the test ends.
func burn(t *testing.T) {
	for range runtime.NumCPU() {
		c := exec.Command("sh", "-c", "while :; do :; done")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	}
}

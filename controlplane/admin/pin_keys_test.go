package admin_test

import (
	"slices"
	"strings"
	"testing"
)

// An org may have more keys than an answer should hold: it counts them, shows
// some, and the rest come by pages.
func TestManyKeysOfAPinComeByPages(t *testing.T) {
	c, kit, _, _ := pinCluster(t)
	us := c.base(kit, "us-east")
	org, project := c.account(us, "any")
	const many = 130
	for range many {
		c.want(201, "POST", us+"/projects/"+project+"/keys", `{"name":"ci"}`)
	}
	r := c.want(200, "POST", us+"/orgs/"+org+"/pin", `{"to":"eu"}`)
	if list, _ := r.json["keys"].([]any); len(list) != 100 || r.json["keys_in_force"] != float64(many) || r.json["keys_unissued"] != float64(many) {
		t.Errorf("%d keys shown, of %v, %v without another", len(list), r.json["keys_in_force"], r.json["keys_unissued"])
	}
	pages := func() (all []map[string]any, sizes []int) {
		for url := us + "/orgs/" + org + "/pin/keys?limit=60"; url != ""; {
			r := c.want(200, "GET", url, "")
			all, sizes = append(all, r.items()...), append(sizes, len(r.items()))
			url = ""
			if next := r.str("next_cursor"); next != "" {
				url = us + "/orgs/" + org + "/pin/keys?limit=60&cursor=" + next
			}
		}
		return all, sizes
	}
	all, sizes := pages()
	if !slices.Equal(sizes, []int{60, 60, 10}) {
		t.Errorf("pages of %v", sizes)
	}
	fresh := c.want(201, "POST", us+"/keys/"+all[0]["old"].(string)+"/reissue", "").str("id")
	if all, _ = pages(); all[0]["new"] != fresh || all[1]["new"] != nil || !strings.HasPrefix(all[0]["project"].(string), "prj_eu_") {
		t.Errorf("%v, %v", all[0], all[1])
	}
	r = c.want(200, "GET", us+"/orgs/"+org+"/pin", "")
	list, _ := r.json["keys"].([]any)
	if r.json["keys_unissued"] != float64(many-1) || list[0].(map[string]any)["new"] != nil {
		t.Errorf("those without another come first: %v, %v left", list[0], r.json["keys_unissued"])
	}
	c.want(404, "GET", us+"/orgs/"+org+"x/pin/keys", "")
}

package seal_test

const (
	frozenKey    = `{"format":1,"id":"0011223344556677","version":1,"key":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}`
	frozenBlob   = "cm1TMQEAAEkBABEiM0RVZncAAAABxDDvNabxZDfzdy/y/d7wrspmktH8dQDmjeyJyRzMca6OrhzbwNlGJcpLdtnfS9bGZhiJSgRvvyE7JYcHMyYESfpkNyLJsOqDi/h1epkzKWk1I8XLEesdWvkPQBVYzsDcpCczmA=="
	frozenStream = "cm1TMQEBAEkBABEiM0RVZncAAAABwLk07IhvjlxPlM5SuAGEk4WcewapO1GBptzXax7Kpto7pqRw6GGYcgvkn4AqemHGQeBxdnQ88IubL+/sAAAAE/dMj2y+ADRixKATHicAbemgISsAAAATvHtiia1eZ3YqiNRnJgfBVPsqQgAAABB9bgpTu+uVknieeS1GFH/t"
)

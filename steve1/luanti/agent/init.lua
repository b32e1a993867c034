-- Reports what the player does, and carries out orders from the program that drives the game.
--
-- Two files in the world's folder, for which no trusted mod is needed:
--   agent.state    written after every server step: "<step> <json> <step>", so that a torn read shows
--   agent.command  one JSON object, put there by renaming; read at the next step, then removed. Its `do` is one of:
--     reset     a new start: seed, arena, items, radius (blocks that must exist around it)
--     teleport  pos, yaw, pitch (each may be missing)
--     watch     send the blocks around the player with the reports: every (steps), reach (first: of the first time), down,
--               up, codes (name -> byte)
--     stop      end the game
-- The report's `done` is the id of the last order that is finished, `reply` its answer (`error`: why it failed).
-- Angles are in degrees and positions in nodes, as the game has them.

local minetest = core   -- the game's own name from 5.10 on; 5.6 has both

local folder = minetest.get_worldpath() .. "/"
local step, events, reply, busy, done, watching = 0, {}, nil, nil, 0, nil
local state = assert(io.open(folder .. "agent.state", "wb"))

-- What was changed against the plain game -----------------------------------------------------------------------------

-- Tall grass drops seeds one time in two and never itself (the game: one time in five, else itself).
for i = 1, 5 do
	minetest.override_item("default:grass_" .. i, {drop = {max_items = 1, items = {{items = {"farming:seed_wheat"}, rarity = 2}}}})
end

-- Plants are as large as in Minecraft. To the eye: all grass is drawn as the tallest of the game's five heights. To the hand:
-- grass is 12/16 of a block wide and 13/16 high (the game: 3/16 to 13/16 high), flowers 6/16 wide and 10/16 high (the game:
-- 4/16 wide).
local function reach(name, wide, high)
	local w = wide / 32
	minetest.override_item(name, {selection_box = {type = "fixed", fixed = {-w, -0.5, -w, w, high / 16 - 0.5, w}}})
end
for i = 1, 5 do
	for _, kind in ipairs{"grass", "dry_grass"} do
		local name = "default:" .. kind .. "_" .. i
		reach(name, 12, 13)
		minetest.override_item(name, {tiles = {"default_" .. kind .. "_5.png"}})
	end
end
for name, _ in pairs(minetest.registered_nodes) do
	if name:sub(1, 8) == "flowers:" and minetest.get_item_group(name, "flower") > 0 then reach(name, 6, 10) end
end

-- A log takes 1.5 s by hand (the game: 3.5 s, Minecraft: 3 s), so that an episode of 20 s can hold several. Stone takes
-- 1.5 s, as in BlockWorld (the game: never, Minecraft: 7.5 s), since holes begin with one or two blocks of dirt.
local hand = table.copy(minetest.registered_items[""].tool_capabilities)
hand.groupcaps.oddly_breakable_by_hand.times[1] = 1.5
hand.groupcaps.cracky = {times = {[3] = 1.5}, uses = 0, maxlevel = 1}
minetest.override_item("", {tool_capabilities = hand})

-- Leaves drop themselves and never a sapling; they do not decay (a felled tree keeps its crown).
for _, kind in ipairs{"leaves", "jungleleaves", "pine_needles", "acacia_leaves", "aspen_leaves"} do
	local name = "default:" .. kind
	local groups = table.copy(minetest.registered_items[name].groups)
	groups.leafdecay = nil
	minetest.override_item(name, {drop = name, groups = groups, after_dig_node = function() end})
end

-- A plant on a block that is dug falls off. It goes to the player instead of lying on the ground, where Minecraft's player
-- would pick it up in passing and this game's would not. What the player drops (key Q) still lies on the ground.
local add_item, item_drop, dropping = minetest.add_item, minetest.item_drop, false
function minetest.item_drop(...)
	dropping = true
	local left = item_drop(...)
	dropping = false
	return left
end
function minetest.add_item(p, item)
	local player = minetest.get_connected_players()[1]
	if dropping or not player then return add_item(p, item) end
	player:get_inventory():add_item("main", item)
end

-- All flowers are roses and yellow dandelions (Minecraft's poppies and dandelions): in their places grow no others.
local flowers = {"flowers:rose", "flowers:dandelion_yellow"}
local others = {tulip = 1, dandelion_white = 2, geranium = 1, viola = 2, chrysanthemum_green = 1, tulip_black = 2}

-- The same map whenever it is generated. The game turns trees and leaves out leaves by a generator of random numbers that
-- all its threads draw from. Here every kind of tree looks the same each time; butterflies and fireflies are left out.
-- Decorations are sorted by all that they say: some have no name, and the order in which Lua walks through a table differs
-- from start to start.
local function canonical(v)
	if type(v) ~= "table" then return tostring(v) end
	local parts = {}
	for k, w in pairs(v) do parts[#parts+1] = tostring(k) .. "=" .. canonical(w) end
	table.sort(parts)
	return "{" .. table.concat(parts, ",") .. "}"
end

local function fixed(schematic)
	local s = minetest.read_schematic(schematic, {write_yslice_prob = "all"})
	local rng = PcgRandom(#s.data)
	local function settle(node)
		if node.prob > 0 and node.prob < 254 then node.prob = rng:next(0, 253) < node.prob and 254 or 0 end
	end
	for _, node in ipairs(s.data) do settle(node) end
	for _, slice in ipairs(s.yslice_prob or {}) do
		if slice.prob < 254 then slice.prob = rng:next(0, 253) < slice.prob and 254 or 0 end
	end
	return s
end

minetest.register_on_mods_loaded(function()
	local defs, n = {}, 0
	for _, def in pairs(minetest.registered_decorations) do defs[#defs+1] = def end
	local keys = {}
	for _, def in ipairs(defs) do keys[def] = (def.name or "") .. canonical(def) end
	table.sort(defs, function(a, b) return keys[a] < keys[b] end)
	minetest.clear_registered_decorations()
	for _, def in ipairs(defs) do
		local name = def.name or ""
		if not name:find("^butterflies:") and not name:find("^fireflies:") then
			if def.deco_type == "schematic" then
				n = n + 1
				def.schematic, def.rotation = fixed(def.schematic), ({"0", "90", "180", "270"})[n % 4 + 1]
			end
			local other = type(def.decoration) == "string" and others[def.decoration:match("^flowers:(.*)") or ""]
			if other then def.decoration = flowers[other] end
			minetest.register_decoration(def)
		end
	end
end)

-- Reports -------------------------------------------------------------------------------------------------------------

local function note(kind, name, p) events[#events+1] = {kind, name, p and {p.x, p.y, p.z} or nil} end
minetest.register_on_dignode(function(p, node) note("dug", node.name, p) end)
minetest.register_on_placenode(function(p, node) note("placed", node.name, p) end)
minetest.register_on_player_receive_fields(function(_, form, fields) if fields.quit then note("closed", form) end end)

local function items(player)
	local found = {}
	for _, list in ipairs{"main", "craft"} do
		for _, stack in ipairs(player:get_inventory():get_list(list) or {}) do
			local name = stack:get_name()
			if name ~= "" then found[name] = (found[name] or 0) + stack:get_count() end
		end
	end
	return found
end

local function is_water(p)
	local def = minetest.registered_nodes[minetest.get_node(p).name]
	return def ~= nil and def.groups ~= nil and def.groups.water ~= nil
end

local function hotbar(player)
	local out = {}
	for i = 1, 9 do out[i] = player:get_inventory():get_stack("main", i):get_name() end
	return out
end

local function blocks(at)   -- the kinds of block around the player as bytes, x slowest
	local r = watching.next == 0 and watching.first or watching.reach
	local lo = {x = math.floor(at.x + .5) - r, y = math.floor(at.y + .5) - watching.down, z = math.floor(at.z + .5) - r}
	local hi = {x = lo.x + 2*r, y = lo.y + watching.down + watching.up, z = lo.z + 2*r}
	local vm = VoxelManip(lo, hi)
	local emin, emax = vm:get_emerged_area()
	local area, data, out = VoxelArea:new{MinEdge = emin, MaxEdge = emax}, vm:get_data(), {}
	for x = lo.x, hi.x do for y = lo.y, hi.y do for z = lo.z, hi.z do out[#out+1] = watching.bytes[data[area:index(x, y, z)]] end end end
	return {lo = {lo.x, lo.y, lo.z}, hi = {hi.x, hi.y, hi.z}, data = minetest.encode_base64(minetest.compress(table.concat(out), "deflate"))}
end

local function describe(player, dtime)
	local p = player:get_pos()
	local eye = {x = p.x, y = p.y + player:get_properties().eye_height, z = p.z}
	local report = {
		step = step, dtime = dtime, events = events, reply = reply, done = done,
		pos = {p.x, p.y, p.z}, yaw = math.deg(player:get_look_horizontal()), pitch = math.deg(player:get_look_vertical()),
		items = items(player), water = is_water{x = p.x, y = p.y + .3, z = p.z}, under = is_water(eye),
	}
	if watching then
		report.bar, report.slot, report.velocity = hotbar(player), player:get_wield_index(), player:get_velocity()
		if step >= watching.next then report.blocks, watching.next = blocks(p), step + watching.every end
	end
	return report
end

-- A new start ---------------------------------------------------------------------------------------------------------

-- Biomes to look in; `near`: what must be there (name or group, how far, how many); `water`: so many of 12 points at these
-- distances are under water; `low`: at most 5 nodes above the sea; `deep`: somewhere near the water is three nodes deep.
local ARENAS = {
	plains = {biomes = {grassland = 1}, near = {"default:dirt_with_grass", 4, 20}},
	forest = {biomes = {deciduous_forest = 1}, near = {"default:tree", 9, 4}},
	meadow = {biomes = {grassland = 1}, near = {"group:flora", 9, 12}, flowers = {flowers, 12, 4}},
	lake   = {biomes = {grassland = 1, deciduous_forest = 1, grassland_dunes = 1}, near = {"default:water_source", 9, 150}, low = true, deep = true, water = {8, 16}},
	beach  = {biomes = {grassland_dunes = 1, coniferous_forest_dunes = 1}, near = {"default:sand", 6, 30}, low = true, water = {10, 18}},
}
local SIZE, SHIFT, RANGE = 80, -32, 20000   -- a chunk of the map generator; how far from the middle of the world a start may lie

local function chunks(p, r)   -- the box of whole chunks that holds everything within r of p
	local function lo(v) return math.floor((v - SHIFT) / SIZE) * SIZE + SHIFT end
	return {x = lo(p.x - r), y = lo(p.y - 16), z = lo(p.z - r)}, {x = lo(p.x + r) + SIZE - 1, y = lo(p.y + 16) + SIZE - 1, z = lo(p.z + r) + SIZE - 1}
end

local function wet_points(p, distances)   -- where nobody can start, low land is under water: known before it is generated
	local n = 0
	for _, d in ipairs(distances) do
		for k = 0, 5 do
			local a = k * math.pi / 3
			if not minetest.get_spawn_level(math.floor(p.x + d*math.cos(a)), math.floor(p.z + d*math.sin(a))) then n = n + 1 end
		end
	end
	return n
end

local function suits(p, arena)
	local biome = minetest.get_biome_data(p)
	return biome and arena.biomes[minetest.get_biome_name(biome.biome)] and (not arena.low or p.y < 6)
		and (not arena.water or wet_points(p, arena.water) >= 4)
end

local function search(rng, arena)   -- a place whose height and biome suit, before anything is generated
	for _ = 1, 20000 do
		local x, z = rng:next(-RANGE, RANGE), rng:next(-RANGE, RANGE)
		local y = minetest.get_spawn_level(x, z)
		if y and suits({x = x, y = y, z = z}, arena) then return {x = x, y = y, z = z} end
	end
end

local function ground(p)   -- standing room on the highest solid node here, if there is any
	local room = 0
	for y = p.y + 20, p.y - 20, -1 do
		local def = minetest.registered_nodes[minetest.get_node{x = p.x, y = y, z = p.z}.name]
		if not def then return end
		if not def.walkable then room = def.liquidtype == "none" and room + 1 or 0
		elseif room >= 2 and not (def.groups.leaves or def.groups.tree) then return {x = p.x, y = y + .5, z = p.z}
		else room = 0 end
	end
end

local function count(p, r, lo, hi, name)
	local names = type(name) == "table" and name or {name}
	return #minetest.find_nodes_in_area({x = p.x - r, y = lo, z = p.z - r}, {x = p.x + r, y = hi, z = p.z + r}, names)
end

local function good(p, arena)
	for _, want in pairs{arena.near, arena.flowers} do
		if count(p, want[2], p.y - want[2], p.y + want[2], want[1]) < want[3] then return false end
	end
	if arena.water and count(p, 18, 1, 1, "default:water_source") < 40 then return false end
	return not arena.deep or count(p, 16, -2, -2, "default:water_source") >= 30
end

local function equip(player, c, at, yaw)
	local inv = player:get_inventory()
	for _, list in ipairs{"main", "craft", "craftresult"} do inv:set_list(list, {}) end
	for _, stack in ipairs(c.items or {}) do inv:add_item("main", stack) end
	player:set_hp(20, "reset"); player:set_breath(11)
	minetest.set_timeofday(.5)
	player:add_velocity(vector.multiply(player:get_velocity(), -1))
	player:set_pos(at)
	player:set_look_horizontal(math.rad(yaw)); player:set_look_vertical(0)
	for _, o in ipairs(minetest.get_objects_inside_radius(at, 200)) do if not o:is_player() then o:remove() end end
end

local kept, order = {}, {}   -- places as they were generated: generated again they would differ

local function keep(key, at, yaw, r)
	local vm = VoxelManip(vector.subtract(at, {x = r, y = 24, z = r}), vector.add(at, {x = r, y = 32, z = r}))
	local lo, hi = vm:get_emerged_area()
	kept[key] = {lo = lo, hi = hi, at = at, yaw = yaw, data = vm:get_data(), light = vm:get_light_data(), more = vm:get_param2_data()}
	order[#order+1] = key
	if #order > 4 then kept[table.remove(order, 1)] = nil end
end

local function restore(k)
	local vm = VoxelManip(k.lo, k.hi)
	vm:set_data(k.data); vm:set_light_data(k.light); vm:set_param2_data(k.more)
	vm:write_to_map(false)
end

local function restart(player, c)
	local arena, rng, tries = ARENAS[c.arena] or error("unknown arena " .. c.arena, 0), PcgRandom(c.seed), 0
	for _, stack in ipairs(c.items or {}) do
		if not minetest.registered_items[ItemStack(stack):get_name()] then error("unknown item " .. stack, 0) end
	end
	local key = c.arena .. " " .. c.seed .. " " .. c.radius
	local function finish(answer) busy, reply, done = nil, answer, c.id end
	local function try()
		local k = kept[key]
		if k then
			restore(k)
			math.randomseed(c.seed)
			equip(player, c, k.at, k.yaw)
			return finish{pos = {k.at.x, k.at.y, k.at.z}, yaw = k.yaw, tries = tries}
		end
		tries = tries + 1
		local p = tries < 40 and search(rng, arena)
		if not p then return finish{error = "no place for this arena was found"} end
		local lo, hi = chunks(p, c.radius)
		minetest.emerge_area(lo, hi, function(_, _, left)
			if left > 0 then return end
			local at = ground(p)
			-- the client cuts off what is below a hundredth of a degree, and .004 is lost to rounding
			if at and math.abs(at.y - p.y) < 6 and good(at, arena) then keep(key, at, rng:next(0, 359) + .004, c.radius) end
			try()
		end)
	end
	busy = true
	try()
end

-- Orders --------------------------------------------------------------------------------------------------------------

local function watch(_, c)
	watching = {every = c.every, reach = c.reach, first = c.first, down = c.down, up = c.up, next = 0, bytes = {}}
	setmetatable(watching.bytes, {__index = function(bytes, id)   -- what has no code is stone or air
		local name = minetest.get_name_from_content_id(id)
		local def = minetest.registered_nodes[name]
		local code = c.codes[name] or ((not def or def.walkable) and 3 or 0)
		bytes[id] = string.char(code)
		return bytes[id]
	end})
end

local DO = {
	reset = restart,
	watch = watch,
	stop = function() minetest.request_shutdown() end,
	teleport = function(player, c)
		if c.pos then player:set_pos{x = c.pos[1], y = c.pos[2], z = c.pos[3]} end
		if c.yaw then player:set_look_horizontal(math.rad(c.yaw)) end
		if c.pitch then player:set_look_vertical(math.rad(c.pitch)) end
	end,
}

local function command(player)
	local f = io.open(folder .. "agent.command", "rb")
	if not f then return end
	local c = minetest.parse_json(f:read("*a"))
	f:close(); os.remove(folder .. "agent.command")
	reply = nil
	local ok, answer = pcall(DO[c["do"]] or error, player, c)
	if not ok then busy, answer = nil, {error = tostring(answer)} end
	reply = answer or reply or {}
	if not busy then done = c.id end
end

minetest.register_globalstep(function(dtime)
	local player = minetest.get_connected_players()[1]
	if not player then return end
	step = step + 1
	command(player)
	local fast = player:get_player_control().aux1 and 1.3 or 1
	if player:get_physics_override().speed ~= fast then player:set_physics_override{speed = fast} end
	local text = minetest.write_json(describe(player, dtime))
	state:seek("set", 0)
	state:write(("%010d %s %010d\n"):format(step, text, step))
	state:flush()
	events = {}
end)

minetest.register_on_joinplayer(function(player)
	player:set_properties{eye_height = 1.62}   -- as in Minecraft; the game: 1.47
	player:hud_set_hotbar_itemcount(9)   -- as many as in Minecraft; the game's own picture of them has eight cells
	player:hud_set_hotbar_image(""); player:hud_set_hotbar_selected_image("")
end)
